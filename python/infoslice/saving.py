"""Pruned models on disk: weights as safetensors, the plan as JSON beside them, no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from infoslice import ops
from infoslice.graph.cuts import set_sizes, size_cuts
from infoslice.graph.shell import named_tensors
from infoslice.replacement import copy_with, like
from infoslice.surgery import PruningPlan

__all__ = ["load_pruned", "save_pruned"]

_FORMAT = "infoslice.pruned"
_VERSION = 1


def save_pruned(
    model: nn.Module, plan: PruningPlan, path: str | os.PathLike[str]
) -> tuple[Path, Path]:
    """Write a pruned model to ``path.safetensors`` and ``path.json`` and return both paths.

    Tied tensors are stored once. Both files are written under temporary names and then renamed, so
    that no half-written file is ever found under the final name; the weights carry the digest of
    the JSON they belong to.

    Args:
        model: the smaller model, as :meth:`PruningPlan.apply` gave it, trained further or not.
        plan: the plan applied.
        path: without extension (``.safetensors`` or ``.json`` at the end is taken off).

    Raises:
        ValueError: the model has not the names and shapes that the plan leads to.
        TypeError: the model has extra state that is no tensor.
    """
    weights_path, json_path = _paths(path)
    state, ties = _state(model, "save_pruned")
    shapes = plan.new_shapes()
    present = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    if present != shapes:
        odd = sorted(
            n for n in {**present, **shapes} if present.get(n) != shapes.get(n)
        )  # fmt: skip
        raise ValueError(
            f"save_pruned: argument model: expected the parameters and buffers that the plan leads "
            f"to, got {odd[0]} of shape {present.get(odd[0])} instead of {shapes.get(odd[0])}"
        )
    content = {"format": _FORMAT, "version": _VERSION, "ties": ties}
    text = json.dumps({**content, "plan": json.loads(plan.to_json())}, indent=1) + "\n"
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    meta = sorted(name for name, tensor in tensors.items() if tensor.device.type == "meta")
    if meta:
        raise ValueError(f"save_pruned: argument model: expected weights, got {meta[0]} on meta")
    suffix = f".{uuid.uuid4().hex}.tmp"
    temporary = [p.with_name(p.name + suffix) for p in (weights_path, json_path)]
    try:
        save_file(tensors, temporary[0], metadata={"format": "pt", "plan_sha256": _digest(text)})
        temporary[1].write_text(text, encoding="utf-8")
        os.replace(temporary[0], weights_path)
        os.replace(temporary[1], json_path)
    finally:
        for left in temporary:
            left.unlink(missing_ok=True)
    return weights_path, json_path


def load_pruned(
    model: nn.Module | Callable[[], nn.Module], path: str | os.PathLike[str]
) -> nn.Module:
    """Rebuild a pruned model from a fresh instance of the unpruned one.

    Args:
        model: an unpruned instance, or a function without arguments that makes one (its class,
            say), with any weights, on any device, the meta device included; it stays as it is.
            Tensors are loaded to its devices (from meta: the CPU), in the dtypes of the file.
        path: as for :func:`save_pruned`.

    Returns:
        A new model with the smaller shapes and exactly the saved weights; requires_grad flags,
        hooks and train/eval mode are those of ``model``.

    Raises:
        ValueError: ``model`` does not match the plan, the two files do not belong together, names
            or shapes in the file are not those expected, or an unsaved buffer lies on meta.
        TypeError: ``model`` is neither a module nor a function that returns one.
        FileNotFoundError: a file is missing.
    """
    weights_path, json_path = _paths(path)
    text = json_path.read_text(encoding="utf-8")
    plan, ties = _read_json(text, json_path)
    with safe_open(weights_path, framework="pt") as file:
        digest = (file.metadata() or {}).get("plan_sha256")
        if digest != _digest(text):
            raise ValueError(
                f"load_pruned: {weights_path.name} and {json_path.name}: expected files written "
                f"together, got weights of another plan"
            )
        loaded = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    model = _made(model)
    plan.validate(model, dtypes=False)
    plan.check(model)
    state, own_ties = _state(model, "load_pruned")
    if own_ties != ties:
        raise ValueError(f"load_pruned: argument model: expected ties {ties}, got {own_ties}")
    shapes = plan.new_shapes()
    expected = {name: shapes[name] for name in state}
    found = {name: tuple(tensor.shape) for name, tensor in loaded.items()}
    if found != expected:
        odd = sorted(n for n in {**found, **expected} if found.get(n) != expected.get(n))
        raise ValueError(
            f"load_pruned: {weights_path.name}: expected {odd[0]} of shape {expected.get(odd[0])}, "
            f"got {found.get(odd[0])}"
        )
    old = [tensor for _, tensor in named_tensors(model)]
    new = [
        _placed(loaded[name], tensor) if name in loaded else _unsaved(plan, name, tensor)
        for name, tensor in named_tensors(model)
    ]
    result = copy_with(model, old, [like(a, b) for a, b in zip(old, new, strict=True)])
    set_sizes(result, size_cuts(plan.groups, plan.keep, model))
    return result


def _made(model: object) -> nn.Module:
    made = model() if callable(model) and not isinstance(model, nn.Module) else model
    if not isinstance(made, nn.Module):
        from_it = "" if made is model else " from the function"
        raise TypeError(
            f"load_pruned: argument model: expected a torch.nn.Module or a function that makes "
            f"one, got {type(made).__name__}{from_it}"
        )
    return made


def _paths(path: str | os.PathLike[str]) -> tuple[Path, Path]:
    text = os.fspath(path)
    for extension in (".safetensors", ".json"):
        text = text.removesuffix(extension)
    return Path(text + ".safetensors"), Path(text + ".json")


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _state(model: nn.Module, op: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Saved tensors under their first name, and other name -> first name for ties."""
    first: dict[int, str] = {id(tensor): name for name, tensor in named_tensors(model)}
    state: dict[str, Tensor] = {}
    ties: dict[str, str] = {}
    for name, tensor in model.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or id(tensor) not in first:
            raise TypeError(
                f"{op}: argument model: expected a state of parameters and buffers, got {name} of "
                f"type {type(tensor).__name__}"
            )
        if first[id(tensor)] == name:
            state[name] = tensor
        else:
            ties[name] = first[id(tensor)]
    return state, ties


def _read_json(text: str, path: Path) -> tuple[PruningPlan, Mapping[str, str]]:
    try:
        data = json.loads(text)
        if data["format"] != _FORMAT or data["version"] != _VERSION:
            raise ValueError(f"{data['format']!r} version {data['version']!r}")
        return PruningPlan.from_json(json.dumps(data["plan"])), data["ties"]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"load_pruned: {path.name}: expected {_FORMAT} version {_VERSION}, got "
            f"{type(error).__name__}: {error}"
        ) from error


def _placed(values: Tensor, like: Tensor) -> Tensor:
    """On the device and in the memory format of the tensor it stands for."""
    device = torch.device("cpu") if like.device.type == "meta" else like.device
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(like.dim())
    if last is not None and not like.is_contiguous() and like.is_contiguous(memory_format=last):
        return values.to(device).contiguous(memory_format=last)
    return values.to(device)


def _unsaved(plan: PruningPlan, name: str, tensor: Tensor) -> Tensor:
    """A buffer that is no part of the state: the fresh model's own, cut as planned."""
    if tensor.device.type == "meta":
        raise ValueError(
            f"load_pruned: argument model: expected values for the buffer {name}, which is not "
            f"saved (persistent=False), got the meta device; make the model on another device"
        )
    cuts = [cut for cut in plan.cuts if cut.tensor == name]
    axes, keep = tuple(cut.axis for cut in cuts), tuple(cut.keep for cut in cuts)
    return ops.slice_channels([tensor.detach()], [axes], [keep])[0]
