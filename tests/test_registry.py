"""Every op is in every tree, and what torch asks of an operator holds for each of them."""

from __future__ import annotations

import ast
import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from infoslice import _core, ops, reference

ROOT = Path(__file__).parents[1]


def cmake_list(name: str) -> list[str]:
    text = (ROOT / "CMakeLists.txt").read_text()
    match = re.search(rf"^set\({name}([^)]*)\)", text, re.MULTILINE)
    assert match, name
    return match.group(1).split()


WORDS = cmake_list("OPS")
NATIVE = _core.build_info()["ops"]
PLACES = [
    "csrc/{}.h",
    "csrc/cpu/{}.cpp",
    "csrc/bindings/{}.cpp",
    "python/infoslice/ops/{}.py",
    "tests/test_{}.py",
    "bench/bench_{}.py",
]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("place", PLACES)
def test_an_op_is_one_word_in_every_tree(word, place):
    assert (ROOT / place.format(word)).is_file()


def test_no_tree_has_a_word_of_its_own():
    for folder in ("csrc/cpu", "csrc/bindings", "python/infoslice/ops"):
        assert set(WORDS) <= {path.stem for path in (ROOT / folder).iterdir()}
    for path in (ROOT / "csrc").glob("*.h"):
        assert path.stem in WORDS


def test_cuda_bodies_are_where_the_bindings_say():
    assert set(cmake_list("CUDA_OPS")) <= {p.stem for p in (ROOT / "csrc/cuda").glob("*.cu")}
    for word in WORDS:
        binding = (ROOT / f"csrc/bindings/{word}.cpp").read_text()
        assert ("Bodies::cpu_and_cuda" in binding) == (word in cmake_list("CUDA_OPS")), word


@pytest.mark.parametrize("name", NATIVE)
def test_native_ops_have_wrapper_reference_schema_and_fake(name):
    wrapper = getattr(ops, name)
    assert name in ops.__all__
    assert name in reference.__all__
    assert callable(getattr(reference, name))
    for text in ("Args:", "Returns:", "Raises:"):
        assert text in wrapper.__doc__
    assert hasattr(torch.ops.infoslice, name)
    for key in ("CPU", "CUDA", "Meta"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"infoslice::{name}", key)


def test_everything_in_the_namespace_is_ours():
    registered = {
        name.removeprefix("infoslice::").split(".")[0]
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("infoslice::")
    }
    assert registered == set(NATIVE)


def test_the_stub_matches_the_module():
    stub = ast.parse((ROOT / "python/infoslice/_core.pyi").read_text())
    functions = {node.name: node.args for node in stub.body if isinstance(node, ast.FunctionDef)}
    assert set(functions) == {name for name in dir(_core) if not name.startswith("__")}
    for name in NATIVE:
        schema = getattr(torch.ops.infoslice, name).default._schema
        stubbed = [argument.arg for argument in functions[name].posonlyargs]
        assert stubbed == [argument.name for argument in schema.arguments], name


# One or more calls of each op's wrapper: positional arguments, keywords.
def spd(*batch: int, d: int = 6, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    a = torch.randn(*batch, d, 2 * d, dtype=torch.float64)
    return (a @ a.mT / (2 * d) + torch.eye(d, dtype=torch.float64)).to(dtype)


def samples() -> dict[str, list[tuple[tuple[Any, ...], dict[str, Any]]]]:
    torch.manual_seed(7)
    x = torch.randn(3, 4, 6, 5)
    y = torch.randn(3, 2, 6, 5)
    matrices = [((spd(),), {}), ((spd(2, 3, dtype=torch.float32),), {})]
    information = [
        ((spd(), [0, 1, 2, 5], [3, 4]), {"noise_variance": 0.1}),
        ((spd(2, dtype=torch.float32), [1, 0], [2, 3, 4]), {}),
    ]
    grouped = [*information, ((spd(3), [0, 1, 2, 3], [4, 5]), {"group_size": 2})]
    keep = torch.tensor([0, 2]), torch.tensor([1, 3, 4])
    layers = [
        (([spd()], [2 * spd()], 3), {"keep": [1, 5]}),
        (([spd(), spd(d=3)], [spd(), spd(d=3)], 2), {"group_size": [2, 1]}),
        (([spd(dtype=torch.float32)], [spd(dtype=torch.float32)], 6), {}),
    ]
    return {
        "covariance": [
            ((torch.randn(9, 4),), {}),
            ((x,), {"channel_dim": 1}),
            ((x.bfloat16(),), {"batch_dims": 1, "correction": 0, "dtype": torch.float64}),
        ],
        "cross_covariance": [((x, y), {"channel_dim": 1}), ((x, x + 1), {"batch_dims": 2})],
        "patch_covariance": [
            ((x, 3), {"padding": 1, "stride": 2}),
            ((x[..., 0].double(), 2), {"dilation": 2}),
        ],
        "patch_cross_covariance": [((x, y[..., 1:-1, 1:-1], 3), {})],
        "slice_channels": [
            (([x, x.to(memory_format=torch.channels_last)], [(1,), (0, 2)], [keep[:1], keep]), {}),
        ],
        "slice_channels_": [
            (([x, x.to(memory_format=torch.channels_last)], [(1,), (0, 2)], [keep[:1], keep]), {}),
        ],
        "cholesky": matrices,
        "logdet": matrices,
        "submatrix_logdet": [
            ((spd(), torch.tensor([[0, 2, 5], [4, 3, 1]])), {}),
            ((spd(dtype=torch.float32), torch.randperm(6).expand(2, 3, 6)), {}),
        ],
        "precision_diagonal": matrices,
        "precision_blocks": [((spd(), 2), {}), ((spd(2, dtype=torch.float32), 3), {})],
        "forward_selection": [
            ((spd(), [0, 1, 2, 5], [3, 4], 3), {"noise_variance": 0.1}),
            ((spd(dtype=torch.float32), [4, 1, 0, 2], [], 1), {"group_size": 2, "start": [1]}),
        ],
        "backward_elimination": layers,
        "obs_elimination": layers,
        "spanning_tree": [
            ((torch.randn(2, 9, 3),), {}),
            ((torch.randn(7, 2, dtype=torch.float64), spd(d=7)), {}),
        ],
        "gaussian_mi": information,
        "marginal_mi": grouped,
        "conditional_mi": grouped,
        "pairwise_mi": grouped,
    }


SAMPLES = samples()
CALLS = [(name, i) for name, calls in SAMPLES.items() for i in range(len(calls))]
# Ops that change the shape of their arguments.
SHAPE_CHANGING = ["slice_channels_"]


def test_there_are_samples_of_every_op():
    assert set(SAMPLES) == set(NATIVE)


class Recorder(TorchDispatchMode):
    """Notes the calls of our operators."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "infoslice":
            self.calls.append((func, copy.deepcopy(args)))  # before it changes them
        return func(*args, **(kwargs or {}))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "index"), CALLS)
def test_opcheck(name, index):
    args, kwargs = copy.deepcopy(SAMPLES[name][index])
    with Recorder() as recorder:
        getattr(ops, name)(*args, **kwargs)
    assert name in {func._schema.name.removeprefix("infoslice::") for func, _ in recorder.calls}
    # An argument that changes its shape cannot be traced: the fake says so.
    tests = ("test_schema", "test_autograd_registration")
    traced = {} if name not in SHAPE_CHANGING else {"test_utils": tests}
    for func, raw in recorder.calls:
        torch.library.opcheck(func, raw, **traced)


def split(args: tuple[Any, ...]) -> tuple[list[torch.Tensor], Any]:
    leaves, spec = torch.utils._pytree.tree_flatten(args)
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]

    def rebuild(replaced):
        replaced = iter(replaced)
        new = [next(replaced) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        return torch.utils._pytree.tree_unflatten(new, spec)

    return tensors, rebuild


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(("name", "index"), [c for c in CALLS if c[0] not in SHAPE_CHANGING])
def test_compile_in_one_graph(name, index, dynamic):
    args, kwargs = SAMPLES[name][index]
    tensors, rebuild = split(args)

    def function(*replaced):
        return tuple(getattr(ops, name)(*rebuild(replaced), **kwargs))

    torch._dynamo.reset()
    compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for actual, expected in zip(compiled(*tensors), function(*tensors), strict=True):
        assert torch.equal(actual, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("fullgraph", [False, True])
@pytest.mark.parametrize(("name", "index"), [c for c in CALLS if c[0] in SHAPE_CHANGING])
def test_compile_is_refused(name, index, fullgraph):
    args, kwargs = copy.deepcopy(SAMPLES[name][index])
    tensors, rebuild = split(args)
    before = copy.deepcopy(tensors)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda *replaced: getattr(ops, name)(*rebuild(replaced), **kwargs)[0] * 2,
        fullgraph=fullgraph,
        backend="aot_eager",
    )
    with pytest.raises(RuntimeError):
        compiled(*tensors)
    for tensor, same in zip(tensors, before, strict=True):
        assert torch.equal(tensor, same)


DIFFERENTIABLE = ["covariance", "cholesky", "logdet"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize(("name", "index"), [c for c in CALLS if c[0] in DIFFERENTIABLE])
def test_compile_with_gradients(name, index):
    (x,), kwargs = SAMPLES[name][index]

    def loss(x):
        value = getattr(ops, name)(x, **kwargs)[0]
        return (value * torch.linspace(1, 2, value.shape[-1] if value.ndim else 1)).sum()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    grads = []
    for function in (loss, compiled):
        leaf = x.clone().requires_grad_()
        function(leaf).backward()
        grads.append(leaf.grad)
    assert grads[0].abs().sum() > 0
    torch.testing.assert_close(grads[1], grads[0])


@pytest.mark.parametrize(("name", "index"), [c for c in CALLS if c[0] not in DIFFERENTIABLE])
def test_a_missing_gradient_is_an_error_or_a_plain_tensor(name, index):
    args, kwargs = SAMPLES[name][index]
    tensors, rebuild = split(args)
    replaced = [t.clone().requires_grad_() if t.is_floating_point() else t for t in tensors]
    try:
        results = tuple(getattr(ops, name)(*rebuild(replaced), **kwargs))
    except RuntimeError as error:
        assert "requires grad" in str(error)  # noqa: PT017 - either outcome is right
    else:
        # documented to cut values only, or differentiable by composition
        assert name == "slice_channels" or results[0].requires_grad


def test_another_device_is_refused():
    # The kernels of the CPU and the CUDA key are one function: it looks at the device itself.
    for key in (torch._C.DispatchKey.CPU, torch._C.DispatchKey.CUDA):
        keys = torch._C.DispatchKeySet(key)
        op = torch.ops.infoslice.covariance.default
        args = (-1, 0, 1, None)
        assert len(op.redispatch(keys, torch.randn(5, 2), *args)) == 2
        with pytest.raises(RuntimeError, match="covariance: x: expected a CPU or CUDA tensor"):
            op.redispatch(keys, torch.randn(5, 2, device="meta"), *args)
