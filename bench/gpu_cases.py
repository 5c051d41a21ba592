"""The goals on a GPU: every case on one device, in the sizes meant or, to try the code, tiny ones.

Goals are those for an H100. Inputs that fit into its L2 cache come in as many copies as do not, and
every run of an entrant takes the next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from bench import hopper
from bench.bench_slice_channels import by_index_select, resnet50_shapes
from bench.contest import OURS, Case, Contest, Part
from infoslice import ops

if TYPE_CHECKING:
    from collections.abc import Sequence

F64, F32, BF16, F16 = torch.float64, torch.float32, torch.bfloat16, torch.float16
COPY = "a bare copy of as many bytes"
TORCH_COV, UNFOLD = "torch.cov", "F.unfold and torch.cov"
UPCAST, GEMM = "H += x.float().T @ x.float()", "x.T @ x"
CHOLESKY, CHOLESKY_EX = "torch.linalg.cholesky", "torch.linalg.cholesky_ex"
LOOP, BATCHED = "torch, layer by layer", "torch, all layers at once"
INVERSE, DOWNDATES, SELECT = "torch.cholesky_inverse", "torch downdates", "torch.index_select"
NOISE, CACHE = 0.1, 128e6


class Rotation:
    """A run that takes the next of several inputs each time."""

    def __init__(self, inputs: Sequence[Any], function: Callable[[Any], Any]) -> None:
        self.inputs, self.function, self.next = inputs, function, 0

    def __call__(self) -> Any:
        given = self.inputs[self.next]
        self.next = (self.next + 1) % len(self.inputs)
        return self.function(given)


@dataclass(frozen=True)
class Place:
    """Where the cases run. Tiny ones have few samples, channels and layers."""

    device: str = "cuda"
    tiny: bool = False

    def size(self, full: int, tiny: int) -> int:
        return tiny if self.tiny else full

    def copies(self, x: torch.Tensor) -> list[torch.Tensor]:
        count = 2 if self.tiny else max(1, math.ceil(CACHE / max(x.nbytes, 1)))
        return [x, *(x.clone() for _ in range(count - 1))]

    def randn(self, *shape: int, dtype: torch.dtype = F32) -> torch.Tensor:
        x = torch.empty(shape, dtype=dtype, device=self.device)
        for piece in x.split(max(1, len(x) // 16)):
            piece.copy_(torch.randn(piece.shape, device=self.device))
        return x

    def copy_of(self, moved: float) -> Part:
        source = torch.ones(max(1, int(moved / 2)), dtype=torch.uint8, device=self.device)
        pairs = [(x, torch.empty_like(x)) for x in self.copies(source)]
        return Part(Rotation(pairs, lambda pair: pair[1].copy_(pair[0])), 1, None)


# -- covariance ------------------------------------------------------------------------------------


def flat(x: torch.Tensor, channel_dim: int) -> torch.Tensor:
    return x.movedim(channel_dim, -1).reshape(-1, x.shape[channel_dim])


def moments(x: torch.Tensor, channel_dim: int, some: int) -> tuple[torch.Tensor, torch.Tensor]:
    """In float64, for the first channels: covariances, and sums of products as they are."""
    n, sums, products = 0, 0.0, 0.0
    for piece in x.split(max(1, len(x) // 32)):
        rows = flat(piece, channel_dim).double()
        n, sums = n + len(rows), sums + rows.sum(0)
        products = products + rows[:, :some].mT @ rows
    assert isinstance(sums, torch.Tensor)
    assert isinstance(products, torch.Tensor)
    return (products - sums[:some, None] * sums / n) / (n - 1), products


def first_rows(result: Any, some: int) -> torch.Tensor:
    return (result if isinstance(result, torch.Tensor) else result[0])[:some]


Route = Callable[..., Any]  # ops.covariance, or kernels as if they were the op


def nchw_contest(place: Place, shape: tuple[int, ...], dtype: torch.dtype, route: Route) -> Contest:
    x = place.randn(*shape, dtype=dtype)
    inputs, some = place.copies(x), 64
    entrants: dict[str, Any] = {
        OURS: Rotation(inputs, lambda x: route(x, channel_dim=1)),
        TORCH_COV: Rotation(
            inputs, lambda x: torch.cov(x.permute(1, 0, 2, 3).reshape(x.shape[1], -1).float())
        ),
        COPY: place.copy_of(x.nbytes),
    }
    expected = moments(x, 1, some)[0]
    return Contest(entrants, expected, 4e-6, partial(first_rows, some=some))


def rows_contest(place: Place, n: int, channels: int, dtype: torch.dtype, route: Route) -> Contest:
    x, some = place.randn(n, channels, dtype=dtype), 64
    covariance, products = moments(x, -1, some)
    entrants: dict[str, Any] = {OURS: lambda: route(x)}
    if dtype == F32:
        entrants[TORCH_COV] = lambda: torch.cov(x.T)
    else:
        h = torch.zeros(channels, channels, device=place.device)

        def upcast() -> torch.Tensor:
            h.add_(x.float().T @ x.float())
            return h

        entrants[UPCAST] = Part(upcast, 1, products, h.zero_)
        # Its result is rounded to bfloat16.
        entrants[GEMM] = Part(lambda: x.T @ x, 1, products, bound=1e-2)
    return Contest(entrants, covariance, 4e-6, partial(first_rows, some=some))


def patch_contest(place: Place, shape: tuple[int, ...], dtype: torch.dtype) -> Contest:
    x, some = place.randn(*shape, dtype=dtype), 64
    unfolded = F.unfold(x.float(), 3, padding=1)
    expected = moments(unfolded, 1, some)[0]
    del unfolded

    def by_unfolding() -> torch.Tensor:
        patches = F.unfold(x.float(), 3, padding=1)
        return torch.cov(patches.permute(1, 0, 2).reshape(patches.shape[1], -1))

    entrants: dict[str, Any] = {
        OURS: lambda: ops.patch_covariance(x, 3, padding=1),
        UNFOLD: by_unfolding,
    }
    return Contest(entrants, expected, 4e-6, partial(first_rows, some=some))


def bfloat16_cases(place: Place, route: Route, suffix: str = "") -> list[Case]:
    cases = []
    for shape in [(256, 64, 56, 56), (256, 128, 28, 28), (256, 256, 28, 28), (256, 512, 14, 14)]:
        shape = (2, 32, 5, 5) if place.tiny else shape
        n, c = math.prod(shape) // shape[1], shape[1]
        cases.append(
            Case(
                f"covariance {list(shape)} bfloat16{suffix}", (OURS, TORCH_COV, COPY),
                partial(nchw_contest, place, shape, BF16, route), goals={TORCH_COV: 4, COPY: 0.5},
                flops=n * c * c, bytes=2.0 * n * c, dtype=BF16,
            )
        )  # fmt: skip
    n, c = place.size(65536, 200), place.size(4096, 96)
    cases.append(
        Case(
            f"covariance [{n}, {c}] bfloat16{suffix}", (OURS, UPCAST, GEMM),
            partial(rows_contest, place, n, c, BF16, route), goals={UPCAST: 8, GEMM: 1.2},
            flops=n * c * c, bytes=2.0 * n * c + 4.0 * c * c, dtype=BF16,
        )
    )  # fmt: skip
    return cases


def hopper_cases(place: Place) -> list[Case]:
    there = place.device == "cuda" and hopper.works()
    return bfloat16_cases(place, hopper.covariance, ", TMA and wgmma") if there else []


def covariance_cases(place: Place) -> list[Case]:
    n, c = place.size(65536, 200), place.size(1024, 80)
    shape = (2, 8, 6, 6) if place.tiny else (64, 64, 28, 28)
    patches, variables = math.prod(shape) // shape[1], 9 * shape[1]
    return [
        *bfloat16_cases(place, ops.covariance),
        Case(
            f"covariance [{n}, {c}] float32", (OURS, TORCH_COV),
            partial(rows_contest, place, n, c, F32, ops.covariance), goals={TORCH_COV: 2},
            flops=n * c * c, bytes=4.0 * n * c + 4.0 * c * c,
        ),
        Case(
            f"patch_covariance {list(shape)} 3x3 bfloat16", (OURS, UNFOLD),
            partial(patch_contest, place, shape, BF16), flops=patches * variables**2,
            bytes=2.0 * math.prod(shape) + 4.0 * variables**2, dtype=BF16,
        ),
    ]  # fmt: skip


# -- matrices --------------------------------------------------------------------------------------


def definite(place: Place, batch: int, d: int, dtype: torch.dtype) -> torch.Tensor:
    x = torch.randn(batch, d, 2 * d, dtype=F64, device=place.device)
    return (x @ x.mT / (2 * d)).to(dtype)


def log_diagonal(factor: torch.Tensor) -> torch.Tensor:
    return 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)


def logdet_contest(place: Place, batch: int, d: int) -> Contest:
    a = definite(place, batch, d, F32)
    inputs = place.copies(a)
    entrants: dict[str, Any] = {
        OURS: Rotation(inputs, ops.logdet),
        CHOLESKY: Rotation(inputs, lambda a: log_diagonal(torch.linalg.cholesky(a))),
        CHOLESKY_EX: Rotation(inputs, lambda a: log_diagonal(torch.linalg.cholesky_ex(a)[0])),
    }
    return Contest(entrants, log_diagonal(torch.linalg.cholesky(a.double())), 1e-5)


def factor_contest(place: Place, batch: int, d: int) -> Contest:
    a = definite(place, batch, d, F32)
    inputs = place.copies(a)
    entrants: dict[str, Any] = {
        OURS: Rotation(inputs, ops.cholesky),
        CHOLESKY: Rotation(inputs, torch.linalg.cholesky),
        CHOLESKY_EX: Rotation(inputs, lambda a: torch.linalg.cholesky_ex(a)[0]),
    }
    return Contest(entrants, torch.linalg.cholesky(a.double()), 1e-4)


def precision_contest(place: Place, batch: int, d: int) -> Contest:
    a = definite(place, batch, d, F32)
    inputs = place.copies(a)

    def diagonal(a: torch.Tensor) -> torch.Tensor:
        factor = torch.linalg.cholesky_ex(a)[0]
        return torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1)

    entrants: dict[str, Any] = {
        OURS: Rotation(inputs, ops.precision_diagonal),
        INVERSE: Rotation(inputs, diagonal),
    }
    return Contest(entrants, diagonal(a.double()), 1e-4)


def matrix_cases(place: Place) -> list[Case]:
    cases = []
    for batch, d, goal in [(4096, 16, 8), (1024, 32, 8), (512, 64, 4), (128, 256, 4)]:
        batch, d = place.size(batch, 6), place.size(d, 10)
        cases.append(
            Case(
                f"logdet {batch} of order {d} float32", (OURS, CHOLESKY, CHOLESKY_EX),
                partial(logdet_contest, place, batch, d), goals={CHOLESKY: goal},
                flops=batch * d**3 / 3, bytes=batch * (2.0 * d * (d + 1) + 8),
            )
        )  # fmt: skip
    batch, d = place.size(128, 3), place.size(256, 10)
    cases += [
        Case(
            f"cholesky {batch} of order {d} float32", (OURS, CHOLESKY, CHOLESKY_EX),
            partial(factor_contest, place, batch, d), flops=batch * d**3 / 3,
            bytes=batch * (2.0 * d * (d + 1) + 4.0 * d * d),
        ),
        Case(
            f"precision_diagonal {batch} of order {d} float32", (OURS, INVERSE),
            partial(precision_contest, place, batch, d), flops=batch * 2 * d**3 / 3,
            bytes=batch * 2.0 * d * (d + 1), dtype=F64,
        ),
    ]  # fmt: skip
    return cases


# -- information -----------------------------------------------------------------------------------


def conditional(cov: torch.Tensor, channels: int) -> torch.Tensor:
    """The closed form of one or many layers: the diagonals of two inverses."""
    s = cov.clone()
    s.diagonal(dim1=-2, dim2=-1)[..., channels:] += NOISE

    def diagonal(a: torch.Tensor) -> torch.Tensor:
        return torch.cholesky_inverse(torch.linalg.cholesky(a)).diagonal(dim1=-2, dim2=-1)

    return 0.5 * (diagonal(s)[..., :channels] / diagonal(s[..., :channels, :channels])).log()


def conditional_contest(place: Place, layers: int, channels: int, outputs: int) -> Contest:
    sx = definite(place, layers, channels, F64)
    w = torch.randn(layers, outputs, channels, dtype=F64, device=place.device) / channels**0.5
    cov = torch.cat([torch.cat([sx, sx @ w.mT], -1), torch.cat([w @ sx, w @ sx @ w.mT], -1)], -2)
    x, y = list(range(channels)), list(range(channels, channels + outputs))
    entrants: dict[str, Any] = {
        OURS: lambda: ops.conditional_mi(cov, x, y, noise_variance=NOISE),
        LOOP: lambda: torch.stack([conditional(one, channels) for one in cov]),
        BATCHED: lambda: conditional(cov, channels),
    }
    return Contest(entrants, conditional(cov, channels), 1e-9)


def information_cases(place: Place) -> list[Case]:
    cases = []
    for channels in (256, 384, 512):
        layers, channels = place.size(64, 3), place.size(channels, 12)
        outputs = channels // 4
        n = channels + outputs
        cases.append(
            Case(
                f"conditional_mi {layers} layers of {channels} channels, {outputs} outputs",
                (OURS, LOOP, BATCHED),
                partial(conditional_contest, place, layers, channels, outputs), goals={LOOP: 5},
                flops=layers * 2 * n**3 / 3, bytes=layers * 4.0 * n * (n + 1), dtype=F64,
            )
        )  # fmt: skip
    return cases


# -- greedy ----------------------------------------------------------------------------------------


def downdates(a: torch.Tensor, b: torch.Tensor, count: int) -> torch.Tensor:
    """The losses of the first eliminations, by rank-one downdates of the whole matrices."""
    a, b, losses = a.clone(), b.clone(), []
    left = torch.zeros(len(a), dtype=a.dtype, device=a.device)
    for _ in range(count):
        loss = 0.5 * (b.diagonal() / a.diagonal()).log() + left
        c = int(loss.argmin())
        losses.append(loss[c])
        left[c] = torch.inf
        for m in (a, b):
            row = m[c].clone()
            m.addr_(row, row, alpha=-1 / float(row[c]))
            m[c, c] = 1
    return torch.stack(losses)


def backward_contest(place: Place, channels: int, count: int, some: int) -> Contest:
    samples = place.randn(256, channels)
    precision = samples.T @ samples / 256
    precision.diagonal().add_(1)
    w = place.randn(64, channels) / channels**0.5
    given_y = precision + w.T @ w / NOISE
    expected = downdates(precision.double(), given_y.double(), some)
    entrants: dict[str, Any] = {
        OURS: lambda: ops.backward_elimination([precision], [given_y], count).losses,
        DOWNDATES: Part(
            lambda: downdates(precision, given_y, some), count / some, expected, bound=1e-2
        ),
    }
    return Contest(entrants, expected, 1e-6, lambda losses: losses[:some])


def greedy_cases(place: Place) -> list[Case]:
    c, some = place.size(11008, 40), place.size(32, 8)
    return [
        Case(
            f"backward_elimination of half of {c} channels, float32", (OURS, DOWNDATES),
            partial(backward_contest, place, c, c // 2, some),
            flops=2 * (7 / 8) * c**3 / 3, bytes=2 * 2.0 * c * (c + 1), dtype=F64, within=10.0,
        )
    ]  # fmt: skip


# -- slicing ---------------------------------------------------------------------------------------


def bits_of_some(result: Sequence[torch.Tensor]) -> torch.Tensor:
    """Sixty-four elements from all over each tensor, as integers."""
    parts = []
    for tensor in result:
        elements = tensor.reshape(-1)
        places = torch.linspace(0, len(elements) - 1, 64, dtype=F64).long()
        kind = torch.int16 if tensor.element_size() == 2 else torch.int32
        parts.append(elements[places.to(tensor.device)].view(kind))
    return torch.cat(parts)


def state_contest(place: Place, shapes: Sequence[tuple[tuple[int, ...], int]], dtype: Any) -> Any:
    """A state in which half of an axis of each tensor stays."""
    tensors = [place.randn(*shape, dtype=dtype) for shape, _ in shapes]
    sizes = {shape[axis] for shape, axis in shapes}
    lists = {size: torch.randperm(size)[: size // 2].sort().values for size in sorted(sizes)}
    axes = [(axis,) for _, axis in shapes]
    keep = [(lists[shape[axis]],) for shape, axis in shapes]
    there = {size: index.to(place.device) for size, index in lists.items()}
    index = [(there[shape[axis]],) for shape, axis in shapes]

    def by_select() -> list[torch.Tensor]:
        return [by_index_select(*each) for each in zip(tensors, axes, index, strict=True)]

    entrants: dict[str, Any] = {
        OURS: lambda: ops.slice_channels(tensors, axes, keep),
        SELECT: by_select,
        COPY: place.copy_of(moved(shapes, dtype)),
    }
    return Contest(entrants, bits_of_some(by_select()), 0, bits_of_some)


def moved(shapes: Sequence[tuple[tuple[int, ...], int]], dtype: torch.dtype) -> float:
    """Bytes read and written: behind a cut axis of small rows whole sectors are read."""
    total = 0.0
    for shape, axis in shapes:
        piece = math.prod(shape[axis + 1 :]) * dtype.itemsize
        read = 0.5 if piece >= 32 else 1.0
        total += math.prod(shape) * dtype.itemsize * (read + 0.5)
    return total


def llama_shapes(layers: int, hidden: int, middle: int) -> list[tuple[tuple[int, ...], int]]:
    """Halved: the heads (rows of q, k, v, columns of o), and what the MLP has inside."""
    square, wide, tall = (hidden, hidden), (middle, hidden), (hidden, middle)
    layer = [(square, 0)] * 3 + [(square, 1), (wide, 0), (wide, 0), (tall, 1)]
    return layer * layers


def slicing_cases(place: Place) -> list[Case]:
    llama = llama_shapes(place.size(32, 2), place.size(4096, 64), place.size(11008, 96))
    resnet: list[tuple[tuple[int, ...], int]] = [(shape, 0) for shape in resnet50_shapes()]
    resnet = resnet[: place.size(len(resnet), 12)]
    return [
        Case(
            "slice_channels of a LLaMA-7B, bfloat16", (OURS, SELECT, COPY),
            partial(state_contest, place, llama, BF16), goals={SELECT: 1.5, COPY: 0.8},
            bytes=moved(llama, BF16),
        ),
        Case(
            "slice_channels of a ResNet-50, float32", (OURS, SELECT, COPY),
            partial(state_contest, place, resnet, F32), goals={SELECT: 10},
            bytes=moved(resnet, F32),
        ),
    ]  # fmt: skip


GROUPS: dict[str, Callable[[Place], list[Case]]] = {
    "covariance": covariance_cases,
    "matrices": matrix_cases,
    "information": information_cases,
    "greedy": greedy_cases,
    "slicing": slicing_cases,
    "hopper": hopper_cases,
}
