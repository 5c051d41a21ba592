"""How much the loss minds errors of what layers put out: Fisher information of their outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoslice.perturbation import Inputs, evaluating
from infoslice.statistics.layers import supported

__all__ = ["output_curvature"]


def output_curvature(
    model: nn.Module,
    inputs: Inputs,
    layers: Iterable[str],
    *,
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Tensor]:
    """Per layer ``F = E[g g']``, float64 ``[m, m]``, g the gradient of the loss in its output.

    The loss is the cross-entropy of labels that are drawn from the model's own predictions, so no
    labels are needed, and F is the Fisher information: an error e of one output position, small and
    independent of the others, raises the loss by ``e' F e / 2`` nats in the mean. The mean is over
    all output positions, of the loss of the whole sample. Outputs of layers linked by the network
    are taken to err independently. Source of the weighting: Molchanov et al. 2019, arXiv
    1906.10771, and Kurtic et al. 2022, arXiv 2203.07259, who apply it to weights.

    Cost: a forward and a backward pass in activations, and the memory of all activations of a
    batch. Some thousand positions are enough for m of some hundred; see ``shrinkage`` of
    :func:`infoslice.criteria.obs`.

    Args:
        model: gives logits ``[N, ..., classes]`` (a tensor, or an object or mapping with
            ``logits``). Run in eval mode; its parameters get no gradients.
        inputs: of the kind that the layers are measured on.
        layers: module paths of linear layers and convolutions, each called once.
        batch_size: samples per pass.
        seed: of the labels.

    Raises:
        ValueError: a layer is of another kind, or is not called once in every forward; the model
            does not give logits; gradients that are not finite.
    """
    names = list(dict.fromkeys(layers))
    for name in names:
        if not supported(model.get_submodule(name)):
            raise ValueError(
                f"output_curvature: argument layers: expected linear layers and convolutions of "
                f"one group, got '{name}' ({type(model.get_submodule(name)).__name__})"
            )
    generator = torch.Generator().manual_seed(seed)
    total: dict[str, Tensor] = {}
    count = dict.fromkeys(names, 0)
    calls: list[tuple[str, Tensor]] = []
    wanted = {p: p.requires_grad for p in model.parameters()}
    hooks = [model.get_submodule(n).register_forward_hook(partial(_keep, n, calls)) for n in names]
    try:
        for parameter in wanted:
            parameter.requires_grad_(False)
        with evaluating(model), torch.enable_grad():
            for batch in inputs.batches(batch_size):
                calls.clear()
                loss = _loss(model(*batch.args, **batch.kwargs), generator)
                if sorted(n for n, _ in calls) != sorted(names):
                    raise ValueError(
                        "output_curvature: argument layers: expected each to be called once, got "
                        f"{[n for n, _ in calls]}"
                    )
                gradients = torch.autograd.grad(loss, [leaf for _, leaf in calls])
                for (name, _), g in zip(calls, gradients, strict=True):
                    linear = isinstance(model.get_submodule(name), nn.Linear)
                    rows = g.movedim(-1 if linear else 1, -1).flatten(0, -2)
                    own = (rows.T @ rows).double().cpu()
                    total[name] = own if name not in total else total[name] + own
                    count[name] += len(rows)
    finally:
        for hook in hooks:
            hook.remove()
        for parameter, needed in wanted.items():
            parameter.requires_grad_(needed)
    for name, summed in total.items():
        if not bool(summed.isfinite().all()):
            raise ValueError(f"output_curvature: the gradient at '{name}' is not finite")
    return {name: total[name] / count[name] for name in names}


def _keep(
    name: str, calls: list[tuple[str, Tensor]], module: nn.Module, args: Any, output: Tensor
) -> Tensor:
    """A place to take the gradient at, even where nothing before needs one."""
    zero = torch.zeros_like(output).requires_grad_()
    calls.append((name, zero))
    return output + zero


def _loss(output: Any, generator: torch.Generator) -> Tensor:
    if isinstance(output, Mapping):
        output = output.get("logits")
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or logits.dim() < 2 or not logits.requires_grad:
        raise ValueError(
            "output_curvature: argument model: expected logits [N, ..., classes] that depend on "
            f"the layers, got {type(logits).__name__}"
        )
    flat = logits.flatten(0, -2).float()
    drawn = torch.multinomial(flat.detach().softmax(-1).cpu(), 1, generator=generator)
    return F.cross_entropy(flat, drawn[:, 0].to(flat.device), reduction="sum")
