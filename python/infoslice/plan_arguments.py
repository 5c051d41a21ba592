"""What a plan is asked for: names of groups and numbers of channels, checked."""

from __future__ import annotations

import difflib
from typing import Any

import torch
from torch import Tensor

from infoslice.graph.channel_graph import ChannelGraph, ChannelGroup

__all__ = ["kept_channels", "unknown_group"]


def kept_channels(channels: Any, argument: str, group: ChannelGroup) -> Tensor:
    """Channels to keep (int64, sorted), from those to ``"keep"`` or to ``"remove"``."""
    place = f"plan: argument {argument}: group {group.name!r}: expected"
    try:
        given = torch.as_tensor(channels, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"{place} integers, got {type(channels).__name__}: {error}") from error
    if given.numel() == 0:
        given = given.to(torch.int64)
    if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        raise TypeError(f"{place} integers, got {given.dtype}")
    if given.dim() != 1:
        raise ValueError(f"{place} one dimension, got shape {tuple(given.shape)}")
    given = given.detach().to(dtype=torch.int64, copy=True)
    if given.numel() and (int(given.min()) < 0 or int(given.max()) >= group.channels):
        span = f"{int(given.min())} to {int(given.max())}"
        raise ValueError(f"{place} channels in [0, {group.channels}), got values from {span}")
    ordered = given if argument == "keep" else given.sort().values
    if bool((ordered[1:] <= ordered[:-1]).any()):
        wanted = "sorted, unique channels" if argument == "keep" else "unique channels"
        raise ValueError(f"{place} {wanted}, got {given.tolist()}")
    if argument == "remove":
        left = torch.ones(group.channels, dtype=torch.bool, device="cpu")
        left[given] = False
        given = left.nonzero().reshape(-1)
    if given.numel() == 0:
        raise ValueError(f"{place} at least one channel to be left, got none")
    return given


def unknown_group(graph: ChannelGraph, name: object) -> str:
    """What is wrong with a group's name, and which one may be meant."""
    for group in graph.groups:
        if name in group.producers:
            return (
                f"expected names of groups, got {name!r}, a layer that writes the channels of the "
                f"group {group.name!r}"
            )
    names = [group.name for group in graph.groups]
    near = difflib.get_close_matches(str(name), names, n=5) or names[:5]
    listed = ", ".join(near) + (", ..." if len(near) < len(names) else "")
    return f"expected groups among [{listed}], got {name!r}"
