"""How much the loss minds errors of what layers put out: Fisher information of their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from infoslice.perturbation import Inputs, evaluating
from infoslice.statistics.layers import position_weights, supported

__all__ = ["Loss", "output_curvature"]

Loss = Literal["cross_entropy", "squared_error"]
_ENOUGH = 8  # positions for each output of a layer, after which no more batches are run


def output_curvature(
    model: nn.Module,
    inputs: Inputs,
    layers: Iterable[str],
    *,
    loss: Loss = "cross_entropy",
    shrinkage: float = 0.1,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Per layer ``F = sum_p E[g_p g_p']``, float64 ``[m, m]``, g_p the gradient at position p.

    An error e of a layer's output, small, at every position (pixel, token) and independent from one
    to the other, raises the loss of one prediction by ``E[e' F e] / 2`` in the mean: g is the
    gradient of the loss in the output of the layer, the sum is over the positions that a sample
    has, divided by its predictions (the rows of the model's output: one for a classifier of images,
    one for each token of a language model). Errors of different layers are taken for independent.

    * ``"cross_entropy"``: the output are logits. Labels are drawn from the model's own predictions,
      so that none are needed, and F is the Fisher information of one label, in nats.
    * ``"squared_error"``: the squared error of the output, relative to its mean square: no unit.
      The gradient is that of the output's product with standard normal noise.

    Source of the weighting: Molchanov et al. 2019, arXiv 1906.10771, and Kurtic et al. 2022, arXiv
    2203.07259, who apply it to weights.

    Cost: a forward and a backward pass in activations, and the memory of all activations of a
    batch; no more batches are run than give every layer 8 m positions.

    Args:
        model: its output, or the ``logits`` in it, or the first floating-point tensor of it, is
            ``[N, ..., k]``. Run in eval mode; its parameters get no gradients.
        inputs: of the kind that the layers are measured on. Their weights are of predictions.
        layers: module paths of linear layers and convolutions. Calls of one layer add up.
        loss: see above.
        shrinkage: share of F that is replaced by the unit matrix times its mean eigenvalue, in
            [0, 1]: a direction in which no gradient was seen is not free.
        batch_size: samples per pass.
        seed: of labels and noise.

    Raises:
        ValueError: an argument out of range; a layer is of another kind, or is never called; the
            model does not give such an output; gradients that are not finite.
    """
    if loss not in get_args(Loss):
        raise ValueError(
            f"output_curvature: argument loss: expected one of {get_args(Loss)}, got {loss!r}"
        )
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"output_curvature: argument shrinkage: expected 0 to 1, got {shrinkage}")
    names = list(dict.fromkeys(layers))
    for name in names:
        if not supported(model.get_submodule(name)):
            raise ValueError(
                f"output_curvature: argument layers: expected linear layers and convolutions of "
                f"one group, got '{name}' ({type(model.get_submodule(name)).__name__})"
            )
    generator = torch.Generator().manual_seed(seed)
    total: dict[str, Tensor] = {}
    seen = dict.fromkeys(names, 0)
    predictions = squares = 0.0
    calls: list[tuple[str, Tensor]] = []
    wanted = {p: p.requires_grad for p in model.parameters()}
    hooks = [model.get_submodule(n).register_forward_hook(partial(_keep, n, calls)) for n in names]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with evaluating(model), torch.enable_grad():
            for batch in inputs.batches(batch_size):
                calls.clear()
                y, w = _rows(model(*batch.args, **batch.kwargs), batch.weights)
                predictions += float(w.sum())
                squares += float(y.detach().double().square().sum(1) @ w)
                # The root, since it is squares of gradients that are summed.
                value = _LOSSES[loss](y, generator) @ w.sqrt().to(y)
                gradients = torch.autograd.grad(value, [leaf for _, leaf in calls])
                for (name, _), g in zip(calls, gradients, strict=True):
                    linear = isinstance(model.get_submodule(name), nn.Linear)
                    rows = g.movedim(-1 if linear else 1, -1).flatten(0, -2)
                    own = (rows.T @ rows).double().cpu()
                    total[name] = own if name not in total else total[name] + own
                    seen[name] += len(rows)
                if all(seen[n] >= _ENOUGH * len(f) for n, f in total.items()):
                    break
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, needed in wanted.items():
            parameter.requires_grad_(needed)
    missing = [name for name in names if name not in total]
    if missing:
        raise ValueError(
            f"output_curvature: argument layers: expected layers that are called, got {missing}"
        )
    unit = predictions if loss == "cross_entropy" else squares / 2
    found = {}
    for name, summed in total.items():
        if not bool(summed.isfinite().all()) or not unit > 0:
            raise ValueError(f"output_curvature: the gradient at '{name}' is not finite")
        whole = shrinkage * summed.diagonal().mean() * torch.eye(len(summed), dtype=summed.dtype)
        found[name] = ((1 - shrinkage) * summed + whole) / unit
    return found


def _keep(
    name: str, calls: list[tuple[str, Tensor]], module: nn.Module, args: Any, output: Tensor
) -> Tensor:
    """A place to take the gradient at, even where nothing before needs one."""
    zero = torch.zeros_like(output).requires_grad_()
    calls.append((name, zero))
    return output + zero


def _rows(output: Any, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Of the model's output, ``[predictions, k]``, and the weight of each, float64."""
    if isinstance(output, Mapping) and "logits" in output:
        output = output["logits"]
    found = getattr(output, "logits", output)
    leaves = (x for x in pytree.tree_leaves(found) if isinstance(x, Tensor))
    y = next((x for x in leaves if x.is_floating_point()), None)
    if y is None or y.dim() < 2 or not y.requires_grad:
        raise ValueError(
            "output_curvature: argument model: expected an output [N, ..., k] that depends on the "
            f"layers, got {type(output).__name__ if y is None else tuple(y.shape)}"
        )
    w = y.new_ones(y.shape[:-1], dtype=torch.float64)
    given = position_weights(weights, y)
    if given is not None:
        if given.shape != w.shape[: given.dim()]:
            raise ValueError(
                f"output_curvature: argument inputs: expected weights for the predictions "
                f"{tuple(w.shape)}, got {tuple(given.shape)}"
            )
        w = w * given.to(w).view(*given.shape, *[1] * (w.dim() - given.dim()))
    return y.flatten(0, -2).float(), w.flatten()


def _cross_entropy(logits: Tensor, generator: torch.Generator) -> Tensor:
    drawn = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)
    return F.cross_entropy(logits, drawn[:, 0].to(logits.device), reduction="none")


def _squared_error(y: Tensor, generator: torch.Generator) -> Tensor:
    return (y * torch.randn(y.shape, generator=generator).to(y.device)).sum(1)


_LOSSES = {"cross_entropy": _cross_entropy, "squared_error": _squared_error}
