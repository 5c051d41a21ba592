"""What a cut model is compared with: the whole model with the removed channels silenced.

Silencing is done on the input side of the consumers (their weights for removed channels are zero),
which is exact for any activation function. Statistics across channels (layer norms and their like,
written by hand or not) are taken over the kept channels alone: the silenced model runs under a mode
that sees its operators as the recording did. Where all activations map 0 to 0 a second, independent
oracle silences the producers.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode

from infoslice.graph.capture import _as_exported
from infoslice.graph.dims import index_maps, size
from infoslice.graph.recording import argument, operator_name
from infoslice.surgery import plan

NORMS = (
    "aten::layer_norm", "aten::rms_norm", "aten::group_norm", "aten::batch_norm", "aten::softmax",
    "aten::topk",
)  # fmt: skip
# Operators and the position of the axes among their arguments.
STATISTICS = {
    "aten::mean": 1, "aten::sum": 1, "aten::var": 1, "aten::std": 1, "aten::var_mean": 1,
    "aten::std_mean": 1, "aten::norm": 2, "aten::linalg_vector_norm": 2,
}  # fmt: skip


def random_plan(graph, seed, least=1):
    generator = torch.Generator().manual_seed(seed)
    remove = {}
    for group in graph.prunable:
        least_here = min(least, group.channels - 1)
        left = int(torch.randint(least_here, group.channels, (1,), generator=generator))
        remove[group.name] = torch.randperm(group.channels, generator=generator)[left:]
    return plan(graph, remove=remove)


def kept_positions(dim, keep):
    """Positions left of an axis, None for all of them; ``keep``: atom -> channels kept."""
    left = None
    for atom, index_map in index_maps(dim) or ():
        if atom in keep:
            left = torch.ones(size(dim), dtype=torch.bool) if left is None else left
            gone = sorted(set(range(atom.size)) - set(keep[atom].tolist()))
            left[index_map.indices(torch.tensor(gone))] = False
    return None if left is None else left.nonzero().reshape(-1)


class KeptStatistics(SchemaCheckMode):
    """Every statistic across channels that are cut is taken over the kept ones.

    ``calls``: operator -> its calls in order, each with the kept positions by axis of its input.
    """

    def __init__(self, graph, pruning):
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)
        # Of groups that do not say that they are normalised no statistic may be taken.
        said = {group.name for group in pruning.groups if group.renormalised}
        atoms = {graph.signature.atoms[name]: pruning.keep[name] for name in said}
        self.calls = {}
        self.seen = Counter()
        for node in graph.signature.nodes:
            if operator_name(node) in (*NORMS, *STATISTICS):
                dims = graph.signature.dims[node.args[0]][0]
                kept = {a: kept_positions(dims[a], atoms) for a in reduced_axes(node, len(dims))}
                calls = self.calls.setdefault(node.target, [])
                calls.append({axis: left for axis, left in kept.items() if left is not None})

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, calls = kwargs or {}, self.calls.get(func)
        if calls is None:
            return func(*args, **kwargs)
        kept = calls[self.seen[func]]
        self.seen[func] += 1
        if not kept:
            return func(*args, **kwargs)
        x, *rest = args
        for axis, left in kept.items():
            x = x.index_select(axis, left)
        if func._schema.name not in NORMS:
            return func(x, *rest, **kwargs)
        ((axis, left),) = kept.items()
        if func._schema.name == "aten::topk":
            values, positions = func(x, *rest, **kwargs)
            return values, left[positions]
        if func._schema.name in ("aten::layer_norm", "aten::rms_norm"):
            rest[0] = [len(left)]
        if func._schema.name != "aten::batch_norm":  # that of a weight has a scale for each row
            rest = [r[left] if isinstance(r, torch.Tensor) else r for r in rest]
        made = func(x, *rest, **kwargs)
        return made.new_zeros(args[0].shape).index_copy(axis, left, made)


def reduced_axes(node, rank):
    """Axes of the first argument over which a node takes a statistic."""
    if operator_name(node) == "aten::group_norm":
        return [1] if node.args[1] == 1 else []
    if operator_name(node) == "aten::batch_norm":  # in training: of a weight, standardised
        return [axis for axis in range(rank) if axis != 1 and argument(node, 5, "training")]
    if operator_name(node) == "aten::softmax":
        return [argument(node, 1, "dim") % rank]
    if operator_name(node) == "aten::topk":
        return [argument(node, 2, "dim", -1) % rank]
    if operator_name(node) in NORMS:
        return [rank - 1] if len(node.args[1]) == 1 else []
    axes = argument(node, STATISTICS[operator_name(node)], "dim")
    if axes is None or isinstance(axes, bool) or axes == []:
        return list(range(rank))
    return [axis % rank for axis in (axes if isinstance(axes, (list, tuple)) else [axes])]


class Silenced(nn.Module):
    """Runs ``model`` with the statistics of the kept channels."""

    def __init__(self, model, graph, pruning):
        super().__init__()
        self.model, self.graph, self.pruning = model, graph, pruning

    def forward(self, *args, **kwargs):
        mode = KeptStatistics(self.graph, self.pruning)
        with _as_exported(), enable_python_dispatcher(), mode:
            result = self.model(*args, **kwargs)
        assert all(mode.seen[func] == len(calls) for func, calls in mode.calls.items())
        return result


def silence(model, pruning, role="in"):
    """The model, of the same shapes, with removed channels that have no effect."""
    model, graph = copy.deepcopy(model), pruning.graph
    state = model.state_dict()
    for group in pruning.groups:
        keep = pruning.keep[group.name]
        gone = torch.tensor(sorted(set(range(group.channels)) - set(keep.tolist())))
        for piece in group.slices:
            producing = role == "out" and not piece.tensor.endswith("running_var")
            if piece.role == role or (producing and piece.role == "follow"):
                state[piece.tensor].index_fill_(piece.axis, piece.index_map.indices(gone), 0)
    return Silenced(model, graph, pruning)


def assert_same(ours, theirs, tolerance):
    ours, theirs = (v["logits"] if isinstance(v, dict) else v for v in (ours, theirs))
    assert ours.shape == theirs.shape
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert error <= tolerance, error
