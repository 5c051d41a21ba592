"""Finds the entries of a config that give planned shapes, by asking the class that reads it.

Every number of the config is doubled in turn and the class is built without weights; the axes that
grow say what the entry has to be. There is no table of architectures. What is found is a proposal:
other configs may give the same shapes.
"""

from __future__ import annotations

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from infoslice.graph.shell import named_tensors

__all__ = ["Guess", "Shapes", "is_config", "search", "starts", "with_heads", "wrong_axes"]

Entry = tuple[str | int, ...]  # path of a config entry: ("text_config", "intermediate_size")
Shapes = Mapping[str, tuple[int, ...]]
Axis = tuple[str, int]

# Surgery leaves the length of heads whole, so other entries explain an axis first.
_HEAD_LENGTHS = ("head_dim", "head_size", "d_kv", "kv_channels")


class Guess(NamedTuple):
    """A config and the shapes of what the class builds from it."""

    config: Any
    shapes: Shapes


def starts(kind: type, config: Any, shapes: Shapes) -> Iterator[Guess]:
    """The config as it is; then with an entry written out that modelling code derives if None.

    The length of the heads that stay must not follow their number.
    """
    yield Guess(copy.deepcopy(config), shapes)
    for name in ("head_dim", "n_inner"):
        explicit = copy.deepcopy(config)
        for part in _parts(explicit):
            width, heads = _value(part, "hidden_size"), _value(part, "num_attention_heads")
            if type(width) is type(heads) is int and _value(part, name) is None:
                with contextlib.suppress(AttributeError):  # computed by the config itself
                    setattr(part, name, width // heads if name == "head_dim" else 4 * width)
        if _shapes(kind, explicit) == shapes:
            yield Guess(explicit, shapes)


def search(kind: type, guess: Guess, target: Shapes) -> Guess:
    """Change one entry after the other while ever more axes become what they have to be."""
    entries = list(_entries(guess.config))
    late = {entry for entry in entries if str(entry[-1]).endswith(_HEAD_LENGTHS)}
    for tried in ([entry for entry in entries if entry not in late], entries):
        better: Guess | None = guess
        while better is not None and better.shapes != target:
            guess = better
            tried, better = _step(kind, guess, target, tried)
        guess = better or guess
    return guess


def _step(
    kind: type, guess: Guess, target: Shapes, entries: Sequence[Entry]
) -> tuple[list[Entry], Guess | None]:
    """The entries that bear on what is wrong, and the best single change; None if none helps."""
    wrong = wrong_axes(guess.shapes, target)
    bearing, votes = [], Counter[tuple[Entry, float]]()
    for entry in entries:
        value = _get(guess.config, entry)
        doubled = _changed(kind, guess.config, entry, 2 * value)
        grown = wrong_axes(guess.shapes, doubled.shapes) if doubled is not None else set()
        if doubled is None or not grown:
            continue
        bearing.append(entry)
        for name, axis in grown & wrong:
            now = guess.shapes[name][axis]
            step = (target[name][axis] - now) / (doubled.shapes[name][axis] - now)
            needed = value + value * step
            if needed > 0 and (type(value) is float or needed == int(needed)):
                votes[entry, type(value)(needed)] += 1
    for (entry, needed), _ in votes.most_common():
        changed = _changed(kind, guess.config, entry, needed)
        # On the way there may be other tensors than wanted (OPT projects while two widths differ).
        if changed is not None and len(wrong_axes(changed.shapes, target)) < len(wrong):
            return bearing, changed
    return bearing, None


def with_heads(kind: type, old: Any, config: Any) -> Iterator[Any]:
    """``config``; where the length of heads follows from the width, with fewer heads as well."""
    yield config
    fewer, shapes = config, _shapes(kind, config)
    for entry in _entries(config):
        before, after = (_value(_get(c, entry[:-1]), "hidden_size") for c in (old, config))
        heads = _get(config, entry)
        if "head" not in str(entry[-1]) or type(before) is not int or before == after:
            continue
        if heads * after % before == 0:
            changed = _changed(kind, fewer, entry, heads * after // before)
            if changed is not None and changed.shapes == shapes:
                fewer = changed.config
    if fewer is not config:
        yield fewer


def _entries(config: Any) -> Iterator[Entry]:
    """Paths of the numbers of a config, of its parts and its lists, that may be widths."""
    for name, value in vars(config).items():
        if name.startswith("_") or "token_id" in name:
            continue
        if type(value) is list:
            yield from ((name, i) for i, item in enumerate(value) if _is_width(name, item))
        elif _is_width(name, value):
            yield (name,)
        elif is_config(value):
            yield from ((name, *rest) for rest in _entries(value))


def _is_width(name: str, value: Any) -> bool:
    """Whether a size may follow from it: a number above zero, of floats only a ratio."""
    is_number = type(value) is int or (type(value) is float and "ratio" in name)
    return is_number and value > 0


def is_config(value: Any) -> bool:
    """Whether it is a config of transformers, or looks like one."""
    return hasattr(value, "to_json_string") and hasattr(value, "model_type")


def _parts(config: Any) -> Iterator[Any]:
    """The config and those within it."""
    yield config
    for value in vars(config).values():
        if is_config(value):
            yield from _parts(value)


def _value(config: Any, name: str) -> Any:
    """An entry under its standard name; None if there is none."""
    return vars(config).get(config.attribute_map.get(name, name)) if is_config(config) else None


def _get(config: Any, entry: Entry) -> Any:
    for key in entry:
        config = config[key] if isinstance(key, int) else vars(config)[key]
    return config


def _changed(kind: type, config: Any, entry: Entry, value: float) -> Guess | None:
    """With another value at ``entry``; None if the config or the class refuses it."""
    made = copy.deepcopy(config)
    holder = _get(made, entry[:-1])
    try:
        if isinstance(entry[-1], int):
            holder[entry[-1]] = value
        else:
            setattr(holder, entry[-1], value)
    except Exception:  # configs check their entries as they like
        return None
    shapes = _shapes(kind, made)
    return None if shapes is None else Guess(made, shapes)


def wrong_axes(shapes: Shapes, target: Shapes) -> set[Axis]:
    """The axes on which the tensors that both models have differ."""
    return {
        (name, axis)
        for name, shape in shapes.items()
        if name in target and len(target[name]) == len(shape)
        for axis, length in enumerate(shape)
        if length != target[name][axis]
    }


def _shapes(kind: type, config: Any) -> Shapes | None:
    """Names and shapes of what the class builds from ``config``; None if it refuses."""
    try:
        with torch.device("meta"):
            built: nn.Module = kind(copy.deepcopy(config))
    except Exception:  # whatever a foreign class raises for a config that makes no sense
        return None
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(built)}
