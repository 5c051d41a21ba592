"""Statistics measured by several processes, reduced over torch.distributed."""

from __future__ import annotations

import zlib
from dataclasses import fields, replace

import torch
import torch.distributed as dist
from torch import Tensor

from infoslice.statistics import Accumulator, Moments, SamplingErrors
from infoslice.statistics.layers import variables, variables_per_channel

__all__ = ["all_reduce", "all_reduce_moments"]


def all_reduce(accumulator: Accumulator, *, group: dist.ProcessGroup | None = None) -> Accumulator:
    """An accumulator that holds the samples of all processes; every process gets the same one.

    Each has measured what it liked: any number of batches, none too, and layers that it never
    called count as without samples. The result is that of one process that saw all samples, up to
    the order of float64 sums, and bit by bit the same on all processes. The accumulator given does
    not change.

    To be called by all processes of the group, with accumulators of the same layers and options.
    gloo reduces on the CPU, NCCL on the current CUDA device; the result lies where the moments, or
    the layer, of the process lie.

    Args:
        accumulator: of this process.
        group: the processes; by default all.

    Raises:
        ValueError: the processes do not measure the same.
        RuntimeError: ``torch.distributed`` is not initialised.
    """
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError(
            "all_reduce: expected torch.distributed to be initialised, got no process group; call "
            "torch.distributed.init_process_group first"
        )
    _check_alike(accumulator, group)
    layers = accumulator.layers
    shapes = torch.zeros(len(layers), 2, dtype=torch.int64)  # called at all, outputs measured
    for row, name in zip(shapes, layers, strict=True):
        if name in accumulator.moments:
            row[0], row[1] = 1, len(accumulator.moments[name].mean_y)
    shapes = _reduced(shapes, dist.ReduceOp.MAX, group)
    found = {}
    for (called, outputs), name in zip(shapes.tolist(), layers, strict=True):
        if called:
            own = accumulator.moments.get(name) or _nothing(accumulator, name, outputs)
            found[name] = all_reduce_moments(own, group=group)
    return accumulator.holding(found)


def all_reduce_moments(moments: Moments, *, group: dist.ProcessGroup | None = None) -> Moments:
    """The moments of the samples of all processes; see :func:`all_reduce`.

    Two sums over the processes: of what gives the common mean, and then, taken about it, of all the
    rest (Chan, Golub and LeVeque 1983). ``moments`` are of the same structure and shapes on all
    processes; ``count`` may be 0. Sampling errors are kept if every process with samples has them.
    """
    d = len(moments.mean_x)
    weighted = moments.squared_weights is not None
    squares = moments.squared_weights if moments.squared_weights is not None else moments.count
    head = [moments.count, squares, float(weighted)]
    head += [float(moments.errors is None and moments.count > 0), float(moments.transformed)]
    means = torch.cat([moments.mean_x, moments.mean_y]) * moments.count
    first = torch.cat([torch.tensor(head, dtype=torch.float64, device=means.device), means])
    first = _reduced(first, dist.ReduceOp.SUM, group)
    count, squares, weighted_somewhere, without_errors, transformed = first[:5].tolist()
    mean = first[5:] / count if count else first[5:]
    if without_errors:
        moments = replace(moments, errors=None)
    elif moments.errors is None:
        moments = replace(moments, errors=_no_errors(moments))
    own = moments.about(mean[:d], mean[d:])

    def summed(tensor: Tensor) -> Tensor:
        return _reduced(tensor, dist.ReduceOp.SUM, group) if tensor.numel() else tensor

    errors = own.errors
    if errors is not None:
        names = [field.name for field in fields(errors)]
        errors = SamplingErrors(*(summed(getattr(errors, name)) for name in names))
    return Moments(
        count,
        mean[:d],
        mean[d:],
        summed(own.scatter_x),
        summed(own.scatter_xy),
        summed(own.scatter_y),
        squares if weighted_somewhere else None,
        errors,
        bool(transformed),
    )


def _reduced(
    tensor: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None
) -> Tensor:
    """A reduced copy on the device where the tensor lies."""
    nccl = dist.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")
    sent = tensor.to(device, copy=True).contiguous()
    dist.all_reduce(sent, op, group)
    return sent.to(tensor.device)


def _check_alike(accumulator: Accumulator, group: dist.ProcessGroup | None) -> None:
    """Processes that measure different things would wait for each other for ever."""
    options = (accumulator.layers, accumulator.structure, accumulator.sampling_errors)
    described = repr((*options, sorted(accumulator.block_sizes.items()))).encode()
    own = torch.tensor([zlib.crc32(described), -zlib.crc32(described)])
    most = _reduced(own, dist.ReduceOp.MAX, group)
    if int(most[0]) != -int(most[1]):
        raise ValueError(
            f"all_reduce: argument accumulator: expected the same layers and options on all "
            f"processes, got others than {len(accumulator.layers)} layers with {options[1]} "
            f"covariances on some"
        )


def _nothing(accumulator: Accumulator, name: str, outputs: int) -> Moments:
    """Moments of no sample."""
    layer = accumulator.model.get_submodule(name)
    d = variables(layer)
    block = accumulator.block_sizes.get(name, variables_per_channel(layer))
    sizes = {"full": (d, d), "block": (d // block, block, block), "diagonal": (d,)}

    def zeros(*size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.float64, device=next(layer.parameters()).device)

    scatter = zeros(*sizes[accumulator.structure])
    return Moments(
        0.0, zeros(d), zeros(outputs), scatter, zeros(d, outputs), zeros(outputs, outputs)
    )


def _no_errors(moments: Moments) -> SamplingErrors:
    zero, zeros = moments.mean_x.new_zeros(()), torch.zeros_like(moments.mean_x)
    third = zeros if moments.structure == "full" else zeros[:0]
    return SamplingErrors(third, zero, zero, zero, zeros, zeros)
