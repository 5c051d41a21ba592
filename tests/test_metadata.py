"""Results told from metadata are those that running the operator on fake tensors gives."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import infoslice.graph.capture as recording
from infoslice.graph.metadata import _FORMULAS, Results, fake
from infoslice.graph.trace import trace

aten = torch.ops.aten
CPU = torch.device("cpu")


def image(*shape: int) -> tuple[str, tuple[int, ...]]:
    return ("tensor", shape)


def calls() -> list[tuple[Any, tuple[Any, ...]]]:
    """Every operator that has a formula, with arguments that it covers and some that it must not.

    A tensor is written as its shape; a negative first size asks for a transposed layout.
    """
    x, c = image(2, 6, 8, 5), image(6)
    listed: list[tuple[Any, tuple[Any, ...]]] = []
    for func in _FORMULAS:
        name = func._schema.name.removeprefix("aten::")
        if name in ("add", "sub", "mul", "add_", "mul_"):
            listed += [(func, (x, x)), (func, (x, image(1))), (func, (image(3, 4), image(4)))]
        elif name == "batch_norm":
            listed += [(func, (x, c, c, c, c, training, 0.1, 1e-5, False))
                       for training in (False, True)]  # fmt: skip
            listed.append((func, (image(4, 6), c, c, c, c, False, 0.1, 1e-5, False)))
        elif name == "layer_norm":
            w = image(8, 5)
            listed += [(func, (x, [8, 5], w, w)), (func, (x, [5])), (func, (x, [5], image(5)))]
        elif name == "linear":
            listed += [(func, (image(2, 3, 4), image(5, 4), image(5))),
                       (func, (image(3, 4), image(5, 4))),
                       (func, (image(4), image(5, 4)))]  # fmt: skip
        elif name == "cat":
            listed += [(func, ([x, image(2, 3, 8, 5)], 1)), (func, ([c, c],)), (func, ([x, x], -1)),
                       (func, ([image(0), c],))]  # fmt: skip
        elif name in ("reshape", "view"):
            listed += [
                (func, (x, shape))
                for shape in (
                    [2, 6, 40],
                    [-1, 5],
                    [12, -1, 4],
                    list(x[1]),
                    [7, -1],
                    [-1, -1],
                    [0, -1],
                )
            ]
            listed += [(func, (image(-3, 4), [2, 6])), (func, (image(), [1, 1]))]
        elif name == "flatten":
            listed += [
                (func, (x, *where)) for where in ((), (1,), (1, 2), (2, 2), (-2, -1), (3, 1))
            ]
            listed += [(func, (image(-3, 4),)), (func, (image(),)), (func, (image(4),))]
        elif name == "transpose":
            listed += [(func, (x, 1, -1)), (func, (x, 2, 2)), (func, (image(-3, 4), 0, 1)),
                       (func, (x, 0, 4)), (func, (image(), 0, 0))]  # fmt: skip
        elif name == "permute":
            listed += [(func, (x, [0, 2, 3, 1])), (func, (x, [-1, 0, 1, 2])), (func, (x, [0, 1])),
                       (func, (x, [0, 0, 1, 2])), (func, (image(-3, 4), [1, 0]))]  # fmt: skip
        elif name == "dropout":
            listed += [(func, (x, 0.5, False)), (func, (x, 0.5, True)), (func, (x, 0.0, True))]
        elif name.startswith("conv"):
            n = int(name[4])
            y, w = image(2, 6, *(9, 7, 8)[:n]), image(4, 3, *(3, 2, 3)[:n])
            listed += [
                (func, (y, w, None, [2] * n, [1] * n, [1] * n, 2)),
                (func, (y, w, image(4), [1], [0], [2], 2)),
                (func, (image(2, 3, *(9, 7, 8)[:n]), w)),
                (func, ((*y[:1], y[1][1:]), w, None, [1], [0], [1], 2)),  # no batch
            ]
        else:
            listed += [(func, (x,)), (func, (image(-3, 4),)), (func, (image(),))]
    return listed


def arguments(mode: FakeTensorMode, tree: Any) -> Any:
    if isinstance(tree, tuple) and tree[:1] == ("tensor",):
        shape = tuple(map(abs, tree[1]))
        stride = (1, 3) if tree[1][:1] == (-3,) else None
        return fake(mode, shape, stride, torch.float32, CPU)
    if isinstance(tree, (tuple, list)):
        return type(tree)(arguments(mode, item) for item in tree)
    return tree


def form(tensor: Tensor) -> tuple[Any, ...]:
    return (type(tensor), tuple(tensor.shape), tensor.stride(), tensor.storage_offset(),
            tensor.dtype, tensor.device, tensor.requires_grad)  # fmt: skip


def shares(first: Tensor, second: Tensor) -> bool:
    return first.untyped_storage()._cdata == second.untyped_storage()._cdata


@pytest.mark.parametrize(("func", "tree"), calls(), ids=str)
def test_formula(func: Any, tree: Any) -> None:
    mode = FakeTensorMode()
    known = Results()
    for _ in range(2):  # by formula or by running it, then from memory
        with mode, torch.no_grad():
            original = arguments(mode, tree)
            try:
                wanted = func(*original)
            except Exception as error:
                with pytest.raises(type(error)):
                    known.run(func, arguments(mode, tree), {})
                continue
            given = arguments(mode, tree)
            found = known.run(func, given, {})
        assert form(found) == form(wanted)
        sources = [t for t in given if isinstance(t, Tensor)]
        before = [t for t in original if isinstance(t, Tensor)]
        for mine, same in zip(sources, before, strict=True):
            assert (found is mine) == (wanted is same)
            assert shares(found, mine) == shares(wanted, same)


def test_results_are_remembered_with_their_memory() -> None:
    mode = FakeTensorMode()
    known = Results()
    with mode, torch.no_grad():
        for round_ in range(2):
            x = fake(mode, (2, 6, 4), None, torch.float32, CPU)
            turned = known.run(aten.transpose.int, (x, 1, 2), {})
            assert turned.untyped_storage()._cdata == x.untyped_storage()._cdata
            assert turned.shape == (2, 4, 6)
            first, second = known.run(aten.split.Tensor, (x, 3, 1), {})
            assert second.storage_offset() == 12
            assert first.untyped_storage()._cdata == x.untyped_storage()._cdata
            assert known.run(aten.max.dim, (x, 1), {})[1].dtype == torch.int64
            assert known.run(aten.dropout.default, (x, 0.5, False), {}) is x
            assert known.hits == (2, 6)[round_]  # two follow formulas


def test_a_view_of_two_arguments_in_one_memory_is_not_remembered() -> None:
    mode = FakeTensorMode()
    known = Results()

    def both(x: Tensor, y: Tensor) -> None:
        first, second = known.run(aten.broadcast_tensors.default, ([x, y],), {})
        assert first.untyped_storage()._cdata == x.untyped_storage()._cdata
        assert second.untyped_storage()._cdata == y.untyped_storage()._cdata

    with mode, torch.no_grad():
        whole = fake(mode, (2, 3), None, torch.float32, CPU)
        both(whole[0], whole[1:])  # offsets 0 and 3 in one memory
        both(fake(mode, (2, 3), None, torch.float32, CPU)[0],
             fake(mode, (2, 3), None, torch.float32, CPU)[1:])  # fmt: skip


def test_what_changes_an_argument_or_yields_a_number_is_run_every_time() -> None:
    mode = FakeTensorMode()
    known = Results()
    with mode, torch.no_grad():
        for _ in range(2):
            x = fake(mode, (2, 6), None, torch.float32, CPU)
            known.run(aten.t_.default, (x,), {})
            assert x.shape == (6, 2)
        assert known.run(aten.item.default, (torch.tensor(3),), {}) == 3
    assert known.hits == len(known) == 0


class Listens(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("other", ["autocast", "mode", "grad", "dtype"])
def test_other_settings_are_not_mistaken_for_these(other: str) -> None:
    mode = FakeTensorMode()
    known = Results()

    def run() -> Tensor:
        x = fake(mode, (4, 4), None, torch.float32, CPU)
        x.requires_grad = other == "grad"
        result: Tensor = known.run(aten.linear.default, (x, x), {})
        return result

    with mode, torch.no_grad():
        run()
    hits = known.hits
    if other == "autocast":
        with mode, torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            run()
        assert known.hits == hits
    elif other == "mode":
        with mode, Listens(), torch.no_grad():
            run()
        assert known.hits == hits
    elif other == "grad":
        with mode:
            assert run().requires_grad
    else:
        before = torch.get_default_dtype()
        with mode, torch.no_grad():
            x = fake(mode, (3,), None, torch.int64, CPU)
            for dtype in (torch.float32, torch.float64):
                torch.set_default_dtype(dtype)
                try:
                    assert known.run(aten.div.Tensor, (x, 2), {}).dtype == dtype
                finally:
                    torch.set_default_dtype(before)


def test_what_is_remembered_is_bounded() -> None:
    mode = FakeTensorMode()
    known = Results(capacity=10)
    with mode, torch.no_grad():
        for n in range(1, 30):
            known.run(aten.relu.default, (fake(mode, (n,), None, torch.float32, CPU),), {})
            assert 1 <= len(known) <= 10


def test_code_that_asks_for_the_device_is_told_the_true_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            assert y.device == torch.device("cpu")
            assert y.is_cpu
            assert not y.is_meta
            return self.second(y.to(y.device).relu())

    for _ in range(2):  # run, and remembered
        graph = trace(Asks(), torch.zeros(2, 4))
        assert [group.channels for group in graph.prunable] == [6]
    monkeypatch.setattr(recording, "_results", Results(capacity=0))
    assert trace(Asks(), torch.zeros(2, 4)).groups == graph.groups
