"""The weights that write, carry and read the channels of a group; nothing is run to have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from infoslice.graph import ChannelGroup, ChannelSlice, IndexMap

__all__ = [
    "batch_norm_scales",
    "filters",
    "incoming",
    "outgoing",
    "positions",
    "silence_",
    "silenced",
]


def filters(group: ChannelGroup, model: nn.Module) -> tuple[Tensor, ...]:
    """The weights that write each channel: ``[C, ...]`` for every producer of the group."""
    found: dict[tuple[str, int], Tensor] = {}
    for piece in group.slices:
        if piece.role == "out":
            tensor = _tensor(model, piece.tensor)
            if tensor.dim() > 1:
                rows = _rows(tensor.movedim(piece.axis, 0), piece.index_map)
                found[piece.tensor, piece.axis] = rows.flatten(1)
    return tuple(found.values())


def incoming(group: ChannelGroup, model: nn.Module, norms: Mapping[str, str]) -> tuple[Tensor, ...]:
    """All that makes each channel what it is: float64 ``[C, k]`` for every module concerned.

    Of a layer that writes the channels its weights and bias, with the batch norm that alone follows
    folded in (``norms``: path of the layer -> path of that norm, which must hold running
    statistics to count). Of any other module that carries the channels along its parameters, of a
    batch norm the scale and shift that it applies. Channels that agree in all of these are equal
    whatever is put in, in eval mode, if nothing but pointwise functions stands between.
    """
    found = []
    folded = set()
    for name in group.producers:
        pieces = [p for p in _pieces(group, "out") if p.module == name]
        weights = [p for p in pieces if _tensor(model, p.tensor).dim() > 1]
        biases = [p for p in pieces if _tensor(model, p.tensor).dim() == 1]
        norm = norms.get(name, "")
        applied = _applied(group, model, norm) if len(weights) == 1 and len(biases) < 2 else None
        if applied is None:
            found += [_own(model, piece).flatten(1) for piece in pieces]
            continue
        folded.add(norm)
        scale, shift = applied
        rows = _own(model, weights[0]).flatten(2)
        bias = _own(model, biases[0]) if biases else torch.zeros_like(scale)
        found += [(rows * scale[:, :, None]).flatten(1), bias * scale + shift]
    for name in dict.fromkeys(p.module for p in group.slices if p.role == "follow"):
        applied = _applied(group, model, name)
        if applied is not None and name not in folded:
            found += [*applied]
        elif applied is None:
            pieces = [p for p in _pieces(group, "follow") if p.module == name]
            found += [_own(model, piece).flatten(1) for piece in pieces]
    return tuple(found)


def outgoing(group: ChannelGroup, model: nn.Module) -> tuple[Tensor, ...]:
    """The weights that read each channel: float64 ``[C, r, m]`` for every consumer of the group.

    ``r`` variables a channel (kernel positions, head width, pixels that were flattened), ``m``
    outputs that read them.
    """
    found = []
    for piece in _pieces(group, "in"):
        rows = _own(model, piece)
        if isinstance(model.get_submodule(piece.module), _ConvNd):
            rows = rows.flatten(3).transpose(2, 3).flatten(1, 2)
        found.append(rows.reshape(len(rows), -1, 1) if rows.dim() == 2 else rows.flatten(2))
    return tuple(found)


def batch_norm_scales(group: ChannelGroup, model: nn.Module) -> tuple[Tensor, ...]:
    """The learned scales of the batch norms that carry the channels: float64 ``[C, n]`` each."""
    return tuple(
        _own(model, piece)
        for piece in _pieces(group, "follow")
        if piece.tensor.endswith("weight")
        and isinstance(model.get_submodule(piece.module), _BatchNorm)
    )


def silence_(tensors: Mapping[str, Tensor], group: ChannelGroup, removed: Tensor) -> None:
    """Zeros for what reads the removed channels, int64, in ``tensors`` by name."""
    for piece in group.slices:
        if piece.role == "in":
            tensor = tensors[piece.tensor]
            places = piece.index_map.indices(removed).to(tensor.device)
            tensor.index_fill_(piece.axis, places, 0)


def silenced(model: nn.Module, group: ChannelGroup, removed: Tensor) -> dict[str, Tensor]:
    """Copies of the weights that read the group, with zeros for the removed channels, int64."""
    names = sorted({piece.tensor for piece in group.slices if piece.role == "in"})
    copies = {name: _tensor(model, name).clone() for name in names}
    silence_(copies, group, removed)
    return copies


def positions(index_map: IndexMap) -> Tensor:
    """``[C, repeat * run]``: the places of every channel along the axis."""
    m = index_map
    channel = torch.arange(m.channels)[:, None, None] * m.run
    inside = torch.arange(m.repeat)[:, None] * m.period + torch.arange(m.run)
    return (m.offset + channel + inside).flatten(1)


def _pieces(group: ChannelGroup, role: str) -> Iterator[ChannelSlice]:
    """Those of one role; a tensor that is tied counts once."""
    seen = set()
    for piece in group.slices:
        place = (piece.tensor, piece.axis, piece.index_map)
        if piece.role == role and place not in seen:
            seen.add(place)
            yield piece


def _applied(group: ChannelGroup, model: nn.Module, name: str) -> tuple[Tensor, Tensor] | None:
    """Scale and shift ``[C, n]`` of a batch norm with running statistics; None for all else."""
    norm = model.get_submodule(name) if name else None
    if not isinstance(norm, _BatchNorm) or norm.running_mean is None or norm.running_var is None:
        return None
    means = [p for p in _pieces(group, "follow") if p.tensor == f"{name}.running_mean"]
    if len(means) != 1:
        return None
    index_map = means[0].index_map
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return _rows(scale, index_map), _rows(shift, index_map)


def _own(model: nn.Module, piece: ChannelSlice) -> Tensor:
    """A float64 copy ``[C, n, ...]`` of what lies at the n places of each channel."""
    tensor = _tensor(model, piece.tensor).movedim(piece.axis, 0)
    return _rows(tensor, piece.index_map).to(torch.float64, copy=True)


def _rows(tensor: Tensor, index_map: IndexMap) -> Tensor:
    """``[C, n, ...]``: what lies where each channel does; a view if one interval holds them all."""
    m = index_map
    if m.repeat == 1:
        interval = tensor[m.offset : m.offset + m.channels * m.run]
        return interval.reshape(m.channels, m.run, *tensor.shape[1:])
    return tensor[positions(m)]


def _tensor(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    return cast(Tensor, getattr(model.get_submodule(path), leaf)).detach()
