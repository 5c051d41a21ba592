"""From the walked graph to channel groups, and to the list of what is left whole."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import nn

from infoslice.graph.channel_graph import ChannelGroup, ChannelSlice, SizeSlice
from infoslice.graph.cuts import get_size
from infoslice.graph.dims import Atom, Dim, atoms, index_maps, pin, resolve, size
from infoslice.graph.index_map import IndexMap
from infoslice.graph.kinds import kinds_of_channels
from infoslice.graph.walk import MULTIPLIER, SPATIAL, Use, Walk

__all__ = ["build_groups", "left_whole"]

_NEVER_CHANNELS = (SPATIAL, MULTIPLIER)


def build_groups(walk: Walk, shell: nn.Module) -> tuple[tuple[ChannelGroup, ...], dict[str, Atom]]:
    """Groups in order of their first producer, and the atom behind the name of each."""
    sizes = _size_slices(walk, shell)  # may pin, hence first
    _pin_what_no_map_can_say(walk)
    known: dict[Dim, list[tuple[Atom, IndexMap]]] = {}  # many tensors share an axis

    def maps_of(dim: Dim) -> list[tuple[Atom, IndexMap]]:
        dim = resolve(dim)
        if dim not in known:
            known[dim] = index_maps(dim) or []
        return known[dim]

    uses: dict[tuple[str, int], list[Use]] = {}
    for use in walk.uses:
        uses.setdefault((use.tensor, use.axis), []).append(use)
    slices: dict[Atom, list[ChannelSlice]] = {}
    for tensor, value in walk.weights.items():
        for axis, dim in enumerate(value.dims):
            otherwise = [Use(tensor, axis, "follow", _owner(tensor))]
            served = list(dict.fromkeys(uses.get((tensor, axis), otherwise)))
            for atom, index_map in maps_of(dim):
                for one in served:
                    piece = ChannelSlice(tensor, axis, index_map, one.module, one.role)
                    slices.setdefault(atom, []).append(piece)
    renormalised: dict[Atom, dict[str, None]] = {}
    for where, dim in walk.renormalised:
        for atom in atoms(dim):
            renormalised.setdefault(atom, {})[where] = None

    kinds = kinds_of_channels(walk, slices)
    steps: dict[Atom, int] = {}
    for dim, step in walk.steps:
        for atom in atoms(dim):
            steps[atom] = math.lcm(steps.get(atom, 1), step)

    order = {use: i for i, use in reversed(list(enumerate(walk.uses)))}
    drafts: list[tuple[int, Atom, list[Use]]] = []
    for atom, listed in slices.items():
        axes = dict.fromkeys((piece.tensor, piece.axis) for piece in listed)
        of_atom = [use for axis in axes for use in uses.get(axis, ())]
        of_atom.sort(key=order.__getitem__)
        first_out = next((order[use] for use in of_atom if use.role == "out"), None)
        if first_out is not None and atom.size > 1 and atom.reason not in _NEVER_CHANNELS:
            drafts.append((first_out, atom, of_atom))
    drafts.sort(key=lambda draft: draft[0])

    groups: list[ChannelGroup] = []
    named: dict[str, Atom] = {}
    for _, atom, of_atom in drafts:
        producers = _modules(of_atom, "out")
        consumers = _modules(of_atom, "in")
        carried = [*_modules(of_atom, "follow")]
        carried += [piece.module for piece in slices[atom] if piece.role == "follow"]
        writer = next(use for use in of_atom if use.role == "out")
        first = writer.module or writer.tensor  # weights of the model itself go by their own name
        name, copies = first, 1
        while name in named:  # one layer may write several groups, side by side
            copies += 1
            name = f"{first}#{copies}"
        named[name] = atom
        reason = atom.reason or ("" if consumers else "no layer reads these channels")
        groups.append(
            ChannelGroup(
                name=name,
                channels=atom.size,
                slices=tuple(slices[atom]),
                producers=producers,
                consumers=consumers,
                followers=tuple(m for m in dict.fromkeys(carried) if m not in producers),
                prunable=not reason,
                reason=reason,
                sizes=tuple(sizes.get(atom, ())),
                renormalised=tuple(renormalised.get(atom, ())),
                kind=kinds.get(atom, "channel"),
                step=steps.get(atom, 1),
            )
        )
    return tuple(groups), named


def _owner(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _modules(uses: Iterable[Use], role: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(use.module for use in uses if use.role == role))


def _pin_what_no_map_can_say(walk: Walk) -> None:
    known: dict[Dim, bool] = {}  # many tensors share an axis
    for tensor, value in walk.weights.items():
        for axis, dim in enumerate(map(resolve, value.dims)):
            if dim not in known:
                known[dim] = index_maps(dim) is None
            if known[dim]:
                pin(dim, f"axis {axis} of {tensor} interleaves channels too deeply")


def _size_slices(walk: Walk, shell: nn.Module) -> dict[Atom, list[SizeSlice]]:
    """The module attributes that hold the length of a channel axis, by atom."""
    decided = bool(walk.guesses)
    result: dict[Atom, list[SizeSlice]] = {}
    for use in walk.sizes:
        module = shell.get_submodule(use.module)
        if get_size(module, use.attribute, use.position) != size(use.dim):
            continue
        if use.guessed and not _free(use.dim):
            continue  # an axis that stays as it is, of a length that happens to be the same
        key = (id(module), use.attribute, use.position)  # a module may have several paths
        # Of several guesses the first is tried: heads come before their width. It stays the guess
        # where the trial fails, since no other was tried.
        first = walk.guesses.setdefault(key, use)
        if not use.guessed and list(atoms(first.dim)) != list(atoms(use.dim)):
            reason = f"'{use.module}' keeps one {use.attribute} for several groups"
            pin(first.dim, reason)
            pin(use.dim, reason)
        elif use.guessed and not decided and _free(first.dim) != _free(use.dim):
            if _free(first.dim) < _free(use.dim):
                walk.guesses[key] = use
            else:
                walk.ties.append((first.dim, use.dim))
    for use in walk.guesses.values():
        if use.guessed and not _free(use.dim):
            continue
        for atom, index_map in index_maps(use.dim) or ():
            piece = SizeSlice(use.module, use.attribute, use.position, index_map)
            result.setdefault(atom, []).append(piece)
    return result


def _free(dim: Dim) -> set[Atom]:
    return {atom for atom in atoms(dim) if atom.reason is None}


def left_whole(
    walk: Walk, groups: tuple[ChannelGroup, ...], shell: nn.Module, refused: Mapping[str, str]
) -> dict[str, str]:
    """Module path -> why its channels stay: layers in execution order, then modules never called.

    ``refused``: tensor name -> reason, for tensors nobody may cut.
    """
    cut = {m for g in groups if g.prunable for m in (*g.producers, *g.followers)}
    reasons: dict[str, str] = {}
    for group in groups:
        for module in (*group.producers, *group.followers):
            reasons.setdefault(module, group.reason)
    whole: dict[str, str] = {}
    for layer in walk.layers:
        if layer in cut:
            continue
        whole[layer] = reasons.get(layer) or _own_reason(walk, layer)
    for path, module in shell.named_modules():
        own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        if own and path not in walk.layers and path not in cut:
            names = [f"{path}.{name}" if path else name for name, _ in own]
            never = "not called with these example inputs"
            whole[path] = next((refused[name] for name in names if name in refused), never)
    return whole


def _own_reason(walk: Walk, layer: str) -> str:
    """Of a layer that is in no group: the reason on the axis it writes, or any on its weights."""
    for use in walk.uses:
        if use.module == layer and use.role != "in":
            written = walk.weights[use.tensor].dims[use.axis]
            return next((a.reason for a in atoms(written) if a.reason), "a single channel")
    found = [
        atom.reason
        for tensor, value in walk.weights.items()
        if _owner(tensor) == layer
        for dim in value.dims
        for atom in atoms(dim)
        if atom.reason
    ]
    return next(iter(found), "a single channel")
