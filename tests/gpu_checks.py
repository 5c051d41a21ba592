"""What every op must do on a GPU, as functions of a case: a call with arguments made on the CPU.

The CPU op tells what is expected (integers, and where NaN are, exactly), the float64 reference how
near to the truth the numbers must be. A ``Machine`` is where the call runs; that of the CPU goes
through the same functions in the ordinary test run and so proves them.
"""

from __future__ import annotations

import contextlib
import copy
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from infoslice import ops, reference

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
Arguments = list[Any]

# Lists of kept channels stay on the host whatever the device of the tensors.
HOST = {"slice_channels": {2}, "slice_channels_": {2}}


@dataclass(frozen=True)
class Case:
    """A call of an op.

    ``make`` builds the positional arguments on the CPU, of values that a seed decides and shapes,
    strides and lists that it does not. ``bound`` is the largest error allowed relative to the
    largest entry of the reference; 0: the very bits of the CPU op.
    """

    op: str
    title: str
    make: Callable[[], Sequence[Any]]
    bound: float
    keywords: Mapping[str, Any] = field(default_factory=dict)
    against_reference: bool = True  # not where the op tells a failure that the reference ignores

    def arguments(self, seed: int = 1) -> Arguments:
        torch.manual_seed(seed)
        return list(self.make())

    def call(self, arguments: Arguments) -> Any:
        return getattr(ops, self.op)(*arguments, **self.keywords)

    def reference(self, arguments: Arguments) -> Any:
        known = {k: v for k, v in self.keywords.items() if k != "dtype"}
        return getattr(reference, self.op)(*arguments, **known)

    def __str__(self) -> str:
        return f"{self.op}: {self.title}"


def results(result: Any) -> list[torch.Tensor]:
    return [result] if isinstance(result, torch.Tensor) else list(result)


def tensors(arguments: Arguments) -> list[torch.Tensor]:
    leaves = torch.utils._pytree.tree_leaves(arguments)
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def memory(tensor: torch.Tensor) -> torch.Tensor:
    """All elements that a tensor's storage holds, behind its back."""
    return torch.empty(0, dtype=tensor.dtype, device=tensor.device).set_(tensor.untyped_storage())


def to_device(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A copy with the very strides and offset, gaps and all."""
    if not tensor._is_view():
        return tensor.detach().to(device, copy=True)
    copied = memory(tensor).to(device, copy=True)
    return copied.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


class Machine:
    """The CPU, which does in order whatever it is told."""

    device = torch.device("cpu")

    def moved(self, case: Case, seed: int = 1) -> Arguments:
        def move(x: Any) -> Any:
            return to_device(x, self.device) if isinstance(x, torch.Tensor) else x

        host = HOST.get(case.op, set())
        return [
            argument if i in host else torch.utils._pytree.tree_map(move, argument)
            for i, argument in enumerate(case.arguments(seed))
        ]

    def synchronize(self) -> None:
        pass

    @contextlib.contextmanager
    def other_stream(self) -> Iterator[None]:
        """Another stream, busy for a while; at the end it is waited for."""
        yield

    @contextlib.contextmanager
    def nothing_waits(self) -> Iterator[None]:
        """Fails if what runs in here waits for the device."""
        yield

    def capture(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        """A graph of what ``run`` does: its results, and what renews them."""
        result = run()

        def replay() -> None:
            for old, new in zip(results(result), results(run()), strict=True):
                if old is not new:
                    old.copy_(new)

        return result, replay


class Cuda(Machine):
    """A GPU, some hundredths of a second behind its host where that matters."""

    def __init__(self, index: int = 0) -> None:
        self.device = torch.device("cuda", index)

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)

    def _sleep(self) -> None:
        torch.cuda._sleep(60_000_000)  # cycles: some 35 ms

    @contextlib.contextmanager
    def other_stream(self) -> Iterator[None]:
        stream = torch.cuda.Stream(self.device)
        with torch.cuda.stream(stream):
            self._sleep()
            yield
        stream.synchronize()

    @contextlib.contextmanager
    def nothing_waits(self) -> Iterator[None]:
        self.synchronize()
        slept = torch.cuda.Event()
        self._sleep()
        slept.record()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that this mode of torch's does not see everything
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
            waited = slept.query()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        self.synchronize()
        assert not waited, "the host waited for the device"

    def capture(self, run: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
        graph = torch.cuda.CUDAGraph()
        self.synchronize()
        with torch.cuda.graph(graph):
            result = run()
        return result, graph.replay


def compare(case: Case, machine: Machine, result: Any, seed: int = 1) -> None:
    """Results of a call against those of the CPU op and the reference."""
    expected = results(case.call(case.arguments(seed)))
    truth: Sequence[torch.Tensor | None] = [None] * len(expected)
    if case.against_reference:
        truth = results(case.reference(case.arguments(seed)))
    for actual, same, true in zip(results(result), expected, truth, strict=True):
        assert actual.device == machine.device
        assert actual.dtype == same.dtype
        assert actual.shape == same.shape
        assert actual.stride() == same.stride()
        actual = actual.detach().cpu()
        if case.bound == 0 or not same.is_floating_point():
            assert torch.equal(actual, same), str(case)
            continue
        assert torch.equal(actual.isnan(), same.isnan()), str(case)
        close(actual, same if true is None else true, case.bound)


def close(actual: torch.Tensor, true: torch.Tensor, bound: float) -> None:
    """All entries that are no NaN, relative to the largest of them."""
    there = ~actual.isnan()
    actual, true = actual[there].double(), true[there].double()
    if true.numel():
        finite = true.isfinite()
        assert torch.equal(actual[~finite], true[~finite])  # the entropy -inf
        scale = true[finite].abs().max().item() if finite.any() else 0.0
        error = (actual[finite] - true[finite]).abs().max().item() if finite.any() else 0.0
        assert error <= bound * scale, f"error {error:.3g} > {bound:.3g} * {scale:.3g}"


def check_values(case: Case, machine: Machine) -> None:
    arguments = machine.moved(case)
    untouched = copy.deepcopy(tensors(arguments))
    compare(case, machine, case.call(arguments))
    if not case.op.endswith("_"):
        for argument, before in zip(tensors(arguments), untouched, strict=True):
            assert torch.equal(bits(argument), bits(before)), "an argument was changed"


def check_another_stream(case: Case, machine: Machine) -> None:
    """Behind work on the caller's stream that makes the arguments."""
    arguments, right = machine.moved(case, seed=2), machine.moved(case, seed=1)
    case.call(machine.moved(case))  # the first call loads code
    machine.synchronize()
    with machine.other_stream():
        for to, source in zip(tensors(arguments), tensors(right), strict=True):
            memory(to).copy_(memory(source))
        result = case.call(arguments)
    compare(case, machine, result)


def check_no_synchronisation(case: Case, machine: Machine) -> None:
    arguments = machine.moved(case)
    case.call(machine.moved(case))
    with machine.nothing_waits():
        result = case.call(arguments)
    compare(case, machine, result)


def check_graph(case: Case, machine: Machine) -> None:
    """Captured once, replayed with other values in the same memory."""
    in_place = case.op.endswith("_")
    arguments = machine.moved(case)
    behind = [memory(tensor) for tensor in tensors(arguments)]
    case.call(machine.moved(case))
    result, replay = machine.capture(lambda: case.call(arguments))
    for seed in (2, 3):
        other = machine.moved(case, seed)
        for to, source in zip(behind, tensors(other), strict=True):
            to.copy_(memory(source))
        for tensor in [] if in_place else results(result):
            tensor.fill_(torch.nan if tensor.is_floating_point() else 77)
        replay()
        machine.synchronize()
        compare(case, machine, result, seed)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)


def check_determinism(case: Case, machine: Machine, times: int = 4) -> None:
    runs = []
    for _ in range(times):
        runs.append([bits(r) for r in results(case.call(machine.moved(case)))])
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True)), str(case)


EXECUTION = [check_another_stream, check_no_synchronisation, check_graph, check_determinism]


def gpu_tests(cases: Sequence[Case]) -> Callable[..., None]:
    """A test of all this. Every case gives right values, every third is executed in every way.

    On the CPU, which waits for itself and captures nothing, every ninth.
    """
    found = []
    for name, machine, step in (("cpu", Machine, 9), ("cuda", Cuda, 3)):
        for check in (check_values, *EXECUTION):
            chosen = cases if check is check_values else cases[::step]
            for case in chosen:
                if check is check_graph and machine is Machine and case.op.endswith("_"):
                    continue  # cannot be called again, which is what the CPU does for a replay
                title = f"{name}: {case}: {check.__name__.removeprefix('check_')}"
                marks = [pytest.mark.gpu] if machine is Cuda else []
                found.append(pytest.param(machine, case, check, id=title, marks=marks))

    @pytest.mark.parametrize(("machine", "case", "check"), found)
    def test(machine: type[Machine], case: Case, check: Callable[[Case, Machine], None]) -> None:
        check(case, machine())

    return test


def need(size: float) -> None:
    """Skips where less memory is free on the GPU."""
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < size:
        pytest.skip(f"needs {size / 1e9:.0f} GB of GPU memory, {free / 1e9:.0f} GB are free")


def definite(*batch: int, d: int, dtype: torch.dtype = F64) -> torch.Tensor:
    """Symmetric positive definite matrices with condition numbers of some tens."""
    x = torch.randn(*batch, d, 2 * d + 2, dtype=F64)
    return (x @ x.mT / (2 * d) + 0.1 * torch.eye(d, dtype=F64)).to(dtype)


def gaps(x: torch.Tensor) -> torch.Tensor:
    """The same values at other strides: transposed in memory, with gaps and an offset."""
    wide = torch.full((*x.shape[:-2], 2 * x.shape[-1] + 3, x.shape[-2] + 1), 7, dtype=x.dtype)
    view = wide[..., 3::2, 1:].mT
    view.copy_(x)
    return view
