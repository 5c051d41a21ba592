"""Moments of what every layer reads, in closed form: no sample is drawn."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from infoslice.graph import ChannelGraph
from infoslice.graph.recording import Node, argument, call_site, operator_name, shape_of
from infoslice.graph.shell import TensorSpec, named_tensors
from infoslice.perturbation.joint import Joint
from infoslice.statistics.layers import padded, receptive_fields, supported
from infoslice.statistics.moments import Moments

__all__ = ["propagate"]

_LAYERS = frozenset(
    "linear conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d".split()
)
_SHAPES = frozenset("flatten view reshape unflatten squeeze unsqueeze".split())
_AFFINE = _LAYERS | frozenset(
    """batch_norm add mul mean pad avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d dropout feature_dropout contiguous clone alias
    detach""".split()
)
_COUNT = 2.0**40  # a power of two: the scatter is the covariance without rounding


def propagate(
    graph: ChannelGraph,
    model: nn.Module,
    mean: Tensor | None = None,
    covariance: Tensor | None = None,
    *,
    anchored: bool = False,
    max_variables: int = 8192,
) -> dict[str, Moments]:
    """Moments of what each layer reads when the network's input is Gaussian, without sampling.

    Affine operators (linear layers, convolutions with their padding, batch norm, sums, averages)
    map means and covariances exactly: they are run on the columns of the covariance. A ReLU gives
    the moments of rectified Gaussian variables (:mod:`infoslice.perturbation.rectified`). That is
    exact up to the second ReLU in a row; what is read there is no longer Gaussian and taken for a
    Gaussian of the same moments. The covariances between all tensors that are still to be read are
    kept, so that the two sides of a residual sum may depend on each other, and those between all
    positions of an image.

    Args:
        graph: of ``model``, from :func:`infoslice.trace`, with one floating-point input
            ``[N, ...]``. Understood are layers, batch norm, ReLU, sums, products with parameters
            and numbers, average pooling, dropout (which does nothing in evaluation) and changes of
            shape.
        model: its parameters and buffers are read.
        mean: of the input, in its shape without N; zero unless given.
        covariance: of the input, ``[D, D]`` for the D values of one sample; the identity unless
            given: the maximum entropy at this variance.
        anchored: give what each batch norm reads the mean and variance that it has recorded;
            correlations are then the propagated ones. A channel of no propagated variance stays
            constant.
        max_variables: values of one sample that a tensor may have: its covariance takes ``8
            D^2`` bytes, and so does that with each other tensor that is read later.

    Returns:
        Module path of every linear layer and convolution that can be measured -> moments of X as
        :func:`infoslice.statistics.collect` gives them, positions and calls pooled, without
        outputs; ``count`` is 2^40: there is no sampling error.

    Raises:
        ValueError: an operator that is not understood, with its module; a tensor of more than
            ``max_variables`` values; several inputs; ``mean`` or ``covariance`` of the wrong shape
            or not finite.
    """
    nodes = graph.signature.nodes
    given = [leaf for leaf in pytree.tree_leaves(graph.inputs) if isinstance(leaf, TensorSpec)]
    if len(given) != 1 or len(given[0].shape) < 2 or not given[0].dtype.is_floating_point:
        raise ValueError(
            f"propagate: argument graph: expected one floating-point input [N, ...], got "
            f"{[(tuple(spec.shape), spec.dtype) for spec in given]}"
        )
    entries = [node for node in nodes if node.op == "placeholder"]  # weights first, then inputs
    weights = dict(zip(entries, (t for _, t in named_tensors(model)), strict=False))
    entry = entries[len(graph.tensors)]
    shape = shape_of(entry)[1:]
    size = math.prod(shape)
    if size > max_variables:
        raise ValueError(_too_large("input", size, max_variables))
    mean = torch.zeros(shape) if mean is None else mean
    covariance = torch.eye(size) if covariance is None else covariance
    for name, value, expected in (
        ("mean", mean, shape), ("covariance", covariance, (size, size)),
    ):  # fmt: skip
        if tuple(value.shape) != expected or not bool(value.isfinite().all()):
            raise ValueError(
                f"propagate: argument {name}: expected finite values {expected}, got "
                f"{tuple(value.shape)}"
            )
    walk = _Walk(model, weights, anchored, max_variables)
    walk.joint.enter(entry, _double(mean).flatten(), _double(covariance))
    walk.readers[entry] = len(entry.users)
    with torch.no_grad():
        for node in nodes:
            if node.op == "call_function" and any(i in walk.readers for i in node.inputs):
                walk.step(node)
    return walk.found


class _Walk:
    """Takes the joint moments through the recorded operators, in order."""

    def __init__(
        self, model: nn.Module, weights: dict[Node, Tensor], anchored: bool, max_variables: int
    ) -> None:
        self.model, self.weights = model, weights
        self.anchored, self.max_variables = anchored, max_variables
        self.joint = Joint()
        self.found: dict[str, Moments] = {}
        self.readers: dict[Node, int] = {}  # of all that depends on the input: those to come

    def step(self, node: Node) -> None:
        name = operator_name(node).removeprefix("aten::").rstrip("_")
        read = [i for i in node.inputs if i in self.readers]
        size = math.prod(shape_of(node)[1:])
        if size > self.max_variables:
            raise ValueError(_too_large(call_site(node), size, self.max_variables))
        if name == "relu":
            self.joint.rectify(node, read[0])
        elif name == "add" and len(read) == 2:
            self._add(node, read)
        elif len(read) == 1 and node.args[0] is read[0] and name in _AFFINE | _SHAPES:
            self._affine(node, name, read[0])
        else:
            raise self._not_understood(node)
        self.readers[node] = len(node.users)
        for x in read:
            self.readers[x] -= 1
        for x in (*read, node):
            if not self.readers[x] and x in self.joint.mean:
                self.joint.forget(x)

    def _not_understood(self, node: Node) -> ValueError:
        return ValueError(
            f"propagate: argument model: expected layers, batch norm, relu, sums, average pooling "
            f"and changes of shape, got {call_site(node)} on shapes "
            f"{[shape_of(i) for i in node.inputs if i in self.readers]}; draw samples instead "
            f"(infoslice.perturbation.perturb, infoslice.statistics.collect)"
        )

    def _add(self, node: Node, read: list[Node]) -> None:
        if {shape_of(x) for x in read} != {shape_of(node)}:
            raise self._not_understood(node)
        self.joint.add(node, node.args[0], node.args[1], float(argument(node, 2, "alpha", 1)))

    def _affine(self, node: Node, name: str, x: Node) -> None:
        others = [i for i in node.inputs if i is not x]
        batch, *inner = shape_of(node)
        known = all(i in self.weights for i in others)
        if not known or batch != shape_of(x)[0] or argument(node, 5, "training") is True:
            raise self._not_understood(node)
        if name in _LAYERS:
            self._record(node, x)
        if name == "batch_norm" and self.anchored:
            x = self._anchor(node, x)

        def run(rows: Tensor) -> Tensor:
            rows = rows.reshape(len(rows), *shape_of(node.args[0])[1:])
            if name in _SHAPES:
                return rows.flatten(1)
            args, kwargs = pytree.tree_map_only(
                Node, lambda i: _double(self.weights[i]), (node.args[1:], node.kwargs)
            )
            result = cast(Tensor, node.target(rows.clone(), *args, **kwargs))
            if tuple(result.shape) != (len(rows), *inner):
                raise self._not_understood(node)
            return result.flatten(1)

        offset = run(torch.zeros_like(self.joint.mean[x]).unsqueeze(0))
        self.joint.affine(node, x, lambda rows: run(rows) - offset, offset.squeeze(0))
        if x is not node.args[0]:
            self.joint.forget(x)

    def _anchor(self, node: Node, x: Node) -> Any:
        """What a batch norm reads, brought to the mean and variance that it has recorded."""
        recorded = [_double(self.weights[i]) for i in node.args[3:5]]
        shape = shape_of(x)[1:]
        means = self.joint.mean[x].reshape(shape[0], -1)
        variances = self.joint.covariance(x, x).diagonal().reshape(shape[0], -1)
        mean = means.mean(1)
        variance = (variances + (means - mean.unsqueeze(1)).square()).mean(1)
        factor = torch.where(variance > 0, recorded[1] / variance, 0.0).sqrt()
        offset = recorded[0] - factor * mean
        positions = means.shape[1]
        key = (node, "anchored")
        self.joint.scale(
            key, x, factor.repeat_interleave(positions), offset.repeat_interleave(positions)
        )
        return key

    def _record(self, node: Node, x: Node) -> None:
        layer = self.model.get_submodule(node.module)
        if not supported(layer):
            return
        # Where each variable of each receptive field lies in x; 0 is a zero beyond the edge.
        shape = shape_of(x)[1:]
        numbers = torch.arange(1, math.prod(shape) + 1).reshape(1, *shape).double()
        if getattr(layer, "padding_mode", "zeros") == "zeros":  # others are operators of their own
            numbers = padded(layer, numbers)
        places = torch.cat(list(receptive_fields(layer, numbers))).long()
        means = torch.cat([torch.zeros(1), self.joint.mean[x]]).double()[places]
        covariance = nn.functional.pad(self.joint.covariance(x, x), (1, 0, 1, 0))
        mean = means.mean(0)
        scatter = (means - mean).T @ (means - mean)
        for place in places:
            scatter += covariance[place.unsqueeze(1), place]
        none = mean.new_zeros(0)
        moments = Moments(
            _COUNT, mean, none, scatter * (_COUNT / len(places)), none.new_zeros(len(mean), 0),
            none.new_zeros(0, 0),
        )  # fmt: skip
        before = self.found.get(node.module)
        self.found[node.module] = moments if before is None else before.merge(moments)


def _double(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", torch.float64)


def _too_large(what: str, size: int, limit: int) -> str:
    return (
        f"propagate: argument max_variables: expected at least {size}, the values of one sample at "
        f"{what}, got {limit}; raise it, or draw samples instead (infoslice.perturbation.perturb, "
        f"infoslice.statistics.collect)"
    )
