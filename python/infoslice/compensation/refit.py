"""Refit what is left of a layer so that it replaces what was cut away."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvTransposeNd

from infoslice.perturbation import Inputs, evaluating
from infoslice.statistics import (
    Moments,
    measure,
    position_weights,
    ridged,
    supported,
    weight_matrix,
)

__all__ = ["joint_moments", "refit_", "refittable"]


def refittable(layer: nn.Module) -> bool:
    """Whether the outputs of ``layer`` are regressions on the inputs that are measured."""
    return supported(layer) and not isinstance(layer, _ConvTransposeNd)


@torch.no_grad()
def joint_moments(
    pruned: nn.Module,
    original: nn.Module,
    name: str,
    inputs: Inputs,
    *,
    batch_size: int = 64,
) -> Moments:
    """Moments of the input that layer ``name`` gets in ``pruned`` and its output in ``original``.

    Both models run in eval mode on the same batches; all calls of the layer are pooled.

    Raises ValueError if the two do not call the layer equally often.
    """
    total: Moments | None = None
    layer = pruned.get_submodule(name)
    for batch in inputs.batches(batch_size):
        xs = [x for x, _ in _calls(pruned, name, batch)]
        ys = [y for _, y in _calls(original, name, batch)]
        if not xs or len(xs) != len(ys):
            raise ValueError(
                f"joint_moments: argument pruned: expected layer '{name}' to be called as often as "
                f"in the original, got {len(xs)} calls and {len(ys)}"
            )
        for x, y in zip(xs, ys, strict=True):
            moments = measure(layer, x, y, weights=position_weights(batch.weights, x))
            total = moments if total is None else total.merge(moments)
    assert total is not None  # Inputs hold at least one batch
    return total


@torch.no_grad()
def refit_(
    layer: nn.Module,
    moments: Moments,
    kept: Tensor,
    *,
    norm: _BatchNorm | None = None,
    ridge: float = 1e-2,
) -> None:
    """Replace the weights of ``layer`` by the least-squares map from the inputs that are left.

    With W_S the weights on the kept variables, S their covariance and C their covariance with the
    target outputs, the new weights minimise
    ``E|Y - W X_S - b|^2 + sum_v Lambda_v |W_v - W_Sv|^2``::

        W = W_S + (C' - W_S S) (S + Lambda)^-1,   Lambda = ridge * diag(S)
        b = mean(Y) - W mean(X_S)

    so that a direction never seen keeps its weight (see :func:`infoslice.statistics.ridged` for
    variables of little variance). All in float64. The bias goes into the layer's
    own, else into the mean of the batch norm that follows it alone; where there is neither, the map
    is fitted through the origin. Weights of the variables not kept become zero.

    Args:
        layer: changed in place.
        moments: of X as the pruned network gives it and Y as the original computes it.
        kept: int64 variables of X that stay.
        norm: the batch norm that alone reads the layer's output, if there is one; its running mean
            is changed if the layer has no bias.
        ridge: see above, > 0.

    Raises:
        ValueError: ``ridge`` is not positive, or ``moments`` are of a transform of X.
    """
    if not ridge > 0:
        raise ValueError(f"refit_: argument ridge: expected > 0, got {ridge}")
    if moments.transformed:
        raise ValueError(
            "refit_: argument moments: expected those of what the layer reads, got those of a "
            "transform of it"
        )
    weight = cast(Tensor, layer.weight)
    bias = cast("Tensor | None", layer.bias)
    centred = bias is not None or norm is not None
    s = moments.covariance_x[kept][:, kept]
    c = moments.covariance_xy[kept]
    mean_x = moments.mean_x[kept]
    if not centred:
        s = s + torch.outer(mean_x, mean_x)
        c = c + torch.outer(mean_x, moments.mean_y)
    old = weight_matrix(layer)
    new = old[:, kept].to(s)
    if bool((s.diagonal() > 0).any()):  # else nothing varies and there is nothing to fit
        factor = torch.linalg.cholesky(ridged(s, ridge))
        new = new + torch.cholesky_solve(c - s @ new.T, factor).T
    full = torch.zeros_like(old)
    full[:, kept] = new
    offset = moments.mean_y - new @ mean_x
    weight.copy_(full.view_as(weight))
    if bias is not None:
        bias.copy_(offset)
    elif norm is not None:
        running_mean = cast(Tensor, norm.running_mean)
        running_mean.sub_(offset.to(running_mean))


def _calls(model: nn.Module, name: str, batch: Inputs) -> list[tuple[Tensor, Tensor]]:
    """Input and output of a layer at each of its calls in one forward."""
    found: list[tuple[Tensor, Tensor]] = []

    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        # What comes later in the forward may work in place on either.
        found.append((args[0].clone(), output.clone()))

    handle = model.get_submodule(name).register_forward_hook(hook)
    try:
        with evaluating(model):
            model(*batch.args, **batch.kwargs)
    finally:
        handle.remove()
    return found
