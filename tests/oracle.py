"""What a cut model is compared with: the whole model with the removed channels silenced.

Silencing is done on the input side of the consumers (their weights for removed channels are zero),
which is exact for any activation function. Statistics that normalise channels (layer norms, norms
written out by hand) are taken over the kept channels: the operators themselves are told, as the
model calls them, so that it does not matter in what module or on which axis they work. Where all
activations map 0 to 0 a second, independent oracle silences the producers.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.schema_check_mode import SchemaCheckMode
from torch.utils._python_dispatch import TorchDispatchMode

from infoslice.graph.capture import _as_exported, _paths
from infoslice.graph.dims import index_maps, size
from infoslice.graph.recording import argument, operator_name
from infoslice.surgery import plan


def random_plan(graph, seed, least=1):
    generator = torch.Generator().manual_seed(seed)
    remove = {}
    for group in graph.prunable:
        least_here = min(least, group.channels - 1)
        left = int(torch.randint(least_here, group.channels, (1,), generator=generator))
        remove[group.name] = torch.randperm(group.channels, generator=generator)[left:]
    return plan(graph, remove=remove)


class KeptStatistics(SchemaCheckMode):
    """While it is on, the normalising operators of a model see the kept channels alone.

    An operator is known by what it is, the module that calls it, and the how manieth of its kind in
    there it is: the recording of the model says on which axes of its input channels were removed.
    """

    def __init__(self, pruning):
        TorchDispatchMode.__init__(self, _dispatch_key=torch._C.DispatchKey.PreDispatch)
        self.modules = [""]
        self.seen = Counter()
        self.kept = {}
        gone = {}
        for group in pruning.groups:
            removed = set(range(group.channels)) - set(pruning.keep[group.name].tolist())
            gone[pruning.graph.signature.atoms[group.name]] = torch.tensor(sorted(removed))
        places = {
            text.split("'")[1] if "'" in text else ""
            for group in pruning.groups
            for text in group.renormalised
        }
        count = Counter()
        for node in pruning.graph.signature.nodes:
            if node.op != "call_function" or operator_name(node) == "getitem":
                continue
            key = (node.target, node.module)
            axes = _statistic_axes(node) if node.module in places else ()
            for axis in axes:
                (dims,) = pruning.graph.signature.dims[node.args[0]]
                keep = torch.ones(size(dims[axis]), dtype=torch.bool)
                for atom, index_map in index_maps(dims[axis]):
                    if atom in gone:
                        keep[index_map.indices(gone[atom])] = False
                if not keep.all():
                    kept = self.kept.setdefault((*key, count[key]), {})
                    kept[axis % len(dims)] = keep.nonzero().flatten()
            count[key] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        key = (func, self.modules[-1])
        kept = self.kept.get((*key, self.seen[key]))
        self.seen[key] += 1
        if kept is None:
            return func(*args, **kwargs)
        whole = args[0]
        x = whole
        for axis, keep in kept.items():
            x = x.index_select(axis, keep)
        if func._schema.name in ("aten::layer_norm", "aten::rms_norm", "aten::group_norm"):
            ((axis, keep),) = kept.items()
            rest = [a[keep] if isinstance(a, torch.Tensor) else a for a in args[1:]]
            if func._schema.name != "aten::group_norm":
                rest[0] = [len(keep)]
            return torch.zeros_like(whole).index_copy(axis, keep, func(x, *rest, **kwargs))
        return func(x, *args[1:], **kwargs)


def _statistic_axes(node):
    """The axes of its first argument over which an operator takes statistics."""
    name = operator_name(node).removeprefix("aten::")
    if name in ("layer_norm", "rms_norm"):
        return (-1,)
    if name == "group_norm":
        return (1,) if argument(node, 1, "num_groups") == 1 else ()
    if name in ("mean", "var", "std", "sum", "var_mean", "std_mean", "norm", "linalg_vector_norm"):
        axes = argument(node, 2 if "norm" in name else 1, "dim")
        rank = len(node.args[0].value.shape)
        return (
            range(rank)
            if axes is None or axes == []
            else axes
            if isinstance(axes, list)
            else [axes]
        )
    return ()


class Silenced(nn.Module):
    """A model whose normalisations see the kept channels alone."""

    def __init__(self, model, pruning):
        super().__init__()
        self.model, self.pruning = model, pruning

    def forward(self, *args, **kwargs):
        mode = KeptStatistics(self.pruning)
        with _paths(self.model, mode.modules), _as_exported(), enable_python_dispatcher(), mode:
            result = self.model(*args, **kwargs)
        missed = set(mode.kept) - {(*key, i) for key, n in mode.seen.items() for i in range(n)}
        assert not missed, missed
        return result


def silence(model, pruning, role="in"):
    """A copy of the same shapes in which removed channels have no effect."""
    model = copy.deepcopy(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    with torch.no_grad():
        for group in pruning.groups:
            keep = pruning.keep[group.name]
            gone = torch.tensor(sorted(set(range(group.channels)) - set(keep.tolist())))
            for piece in group.slices:
                producing = role == "out" and not piece.tensor.endswith("running_var")
                if piece.role == role or (producing and piece.role == "follow"):
                    places = piece.index_map.indices(gone)
                    tensors[piece.tensor].index_fill_(piece.axis, places, 0)
    renormalised = any(group.renormalised for group in pruning.groups)
    return Silenced(model, pruning) if renormalised else model


def assert_same(ours, theirs, tolerance):
    ours, theirs = (v["logits"] if isinstance(v, dict) else v for v in (ours, theirs))
    assert ours.shape == theirs.shape
    error = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    assert error <= tolerance, error
