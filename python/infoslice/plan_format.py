"""The JSON form of a pruning plan: everything needed to cut a model, and nothing executable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from infoslice.graph.channel_graph import ChannelGroup, ChannelSlice, SizeSlice
from infoslice.graph.index_map import IndexMap
from infoslice.graph.shell import TensorSpec

__all__ = [
    "decode_groups",
    "decode_tensors",
    "decode_tree",
    "encode_groups",
    "encode_tensors",
    "encode_tree",
]


def encode_groups(
    groups: tuple[ChannelGroup, ...], keep: Mapping[str, Tensor]
) -> list[dict[str, Any]]:
    """Groups with their index maps and the channels they keep."""
    return [
        {
            "name": group.name,
            "channels": group.channels,
            "keep": keep[group.name].tolist(),
            "producers": list(group.producers),
            "consumers": list(group.consumers),
            "followers": list(group.followers),
            "renormalised": list(group.renormalised),
            "kind": group.kind,
            "step": group.step,
            "slices": [
                {
                    "tensor": piece.tensor,
                    "axis": piece.axis,
                    "module": piece.module,
                    "role": piece.role,
                    "index_map": piece.index_map.to_dict(),
                }
                for piece in group.slices
            ],
            "sizes": [
                {
                    "module": piece.module,
                    "attribute": piece.attribute,
                    "position": piece.position,
                    "index_map": piece.index_map.to_dict(),
                }
                for piece in group.sizes
            ],
        }
        for group in groups
    ]


def decode_groups(listed: list[dict[str, Any]]) -> tuple[ChannelGroup, ...]:
    """Inverse of :func:`encode_groups`, without ``keep``."""
    return tuple(
        ChannelGroup(
            name=entry["name"],
            channels=entry["channels"],
            slices=tuple(
                ChannelSlice(
                    s["tensor"], s["axis"], IndexMap(**s["index_map"]), s["module"], s["role"]
                )
                for s in entry["slices"]
            ),
            producers=tuple(entry["producers"]),
            consumers=tuple(entry["consumers"]),
            followers=tuple(entry["followers"]),
            prunable=True,
            reason="",
            sizes=tuple(
                SizeSlice(s["module"], s["attribute"], s["position"], IndexMap(**s["index_map"]))
                for s in entry["sizes"]
            ),
            renormalised=tuple(entry["renormalised"]),
            kind=entry.get("kind", "channel"),  # older files say neither
            step=entry.get("step", 1),
        )
        for entry in listed
    )


def encode_tensors(
    tensors: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
) -> dict[str, dict[str, Any]]:
    """Names, shapes and dtypes of a model's state."""
    return {
        name: {"shape": list(shape), "dtype": _dtype_name(dtype)}
        for name, (shape, dtype) in tensors.items()
    }


def decode_tensors(
    listed: Mapping[str, dict[str, Any]],
) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """Inverse of :func:`encode_tensors`."""
    return {name: (tuple(e["shape"]), _dtype(e["dtype"])) for name, e in listed.items()}


def encode_tree(tree: Any) -> Any:
    """Example inputs. Raises TypeError for what JSON cannot carry."""
    if tree is None or isinstance(tree, (bool, int, float, str)):
        return tree
    if isinstance(tree, TensorSpec):
        stride = None if tree.stride is None else list(tree.stride)
        kind = {"shape": list(tree.shape), "dtype": _dtype_name(tree.dtype)}
        return {"tensor": {**kind, "device": tree.device, "stride": stride}}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [encode_tree(item) for item in tree]}
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: encode_tree(item) for key, item in tree.items()}}
    raise TypeError(
        f"PruningPlan.to_json: example inputs: expected tensors, numbers, strings and None in "
        f"tuples, lists and dicts, got {type(tree).__name__}"
    )


def decode_tree(tree: Any) -> Any:
    """Inverse of :func:`encode_tree`."""
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    if kind == "tensor":
        stride = None if content["stride"] is None else tuple(content["stride"])
        shape = tuple(content["shape"])
        return TensorSpec(shape, _dtype(content["dtype"]), content["device"], stride)
    if kind == "dict":
        return {key: decode_tree(item) for key, item in content.items()}
    items = [decode_tree(item) for item in content]
    return tuple(items) if kind == "tuple" else items


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"PruningPlan.from_json: dtype: expected a torch dtype, got {name!r}")
    return dtype
