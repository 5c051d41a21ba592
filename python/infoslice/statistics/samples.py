"""A bounded number of samples of what layers read and write, for estimators that need samples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from infoslice.perturbation import Inputs, evaluating
from infoslice.statistics.layers import position_weights

__all__ = ["Samples", "collect_samples"]


class Samples(NamedTuple):
    """``x`` ``[N, channels]`` read and ``y`` ``[N, m]`` written by a layer, row by row together.

    float32; each an average over the positions (pixels, tokens) of one image or sequence, by their
    weights if the inputs have any. Samples of weight 0 are left out; otherwise all count alike.
    """

    x: Tensor
    y: Tensor


def collect_samples(
    model: nn.Module,
    inputs: Inputs,
    layers: Iterable[str],
    *,
    limit: int,
    batch_size: int = 64,
) -> dict[str, Samples]:
    """Run ``model`` in eval mode until ``layers`` have ``limit`` samples or the inputs end.

    Args:
        model: nothing of it changes.
        inputs: what is put in, from the front.
        layers: module paths of linear layers and convolutions (of any groups). A sample is an entry
            of the first dimension of what the layer reads; several calls follow each other.
        limit: samples per layer at most, >= 1.
        batch_size: samples per forward.

    Raises:
        ValueError: ``limit`` < 1, a layer was never called, or NaN or infinite values.
        TypeError: a layer that is neither linear nor a convolution.
    """
    if limit < 1:
        raise ValueError(f"collect_samples: argument limit: expected at least 1, got {limit}")
    rows: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in layers}
    counts = dict.fromkeys(rows, 0)
    shown: Tensor | None = None  # weights of the batch that is run

    def hook_of(name: str) -> Any:
        channel_dim = 1 if isinstance(model.get_submodule(name), _ConvNd) else -1

        def hook(_: nn.Module, args: tuple[Tensor, ...], y: Tensor) -> None:
            left = limit - counts[name]
            if left > 0:
                x, z = (_averaged(t, channel_dim, shown) for t in (args[0], y))
                rows[name].append((x[:left], z[:left]))
                counts[name] += len(x[:left])

        return hook

    for name in rows:
        layer = model.get_submodule(name)
        if not isinstance(layer, (nn.Linear, _ConvNd)):
            raise TypeError(
                f"collect_samples: argument layers: expected linear layers and convolutions, got "
                f"'{name}', a {type(layer).__name__}"
            )
    hooks = [model.get_submodule(name).register_forward_hook(hook_of(name)) for name in rows]
    try:
        with evaluating(model), torch.no_grad():
            for batch in inputs.batches(min(batch_size, limit)):
                shown = batch.weights
                model(*batch.args, **batch.kwargs)
                if all(count >= limit for count in counts.values()):
                    break
    finally:
        for hook in hooks:
            hook.remove()
    missing = [name for name, found in rows.items() if not found]
    if missing:
        raise ValueError(
            f"collect_samples: argument layers: expected layers that are called, got {missing}"
        )
    found = {
        name: Samples(torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs]))
        for name, pairs in rows.items()
    }
    for name, samples in found.items():
        if not all(bool(t.isfinite().all()) for t in samples):
            raise ValueError(
                f"collect_samples: argument inputs: expected finite activations of layer "
                f"'{name}', got NaN or infinity"
            )
    return found


def _averaged(t: Tensor, channel_dim: int, weights: Tensor | None) -> Tensor:
    """``[N, C]`` float32, the mean over all dimensions but the first and the channels."""
    last = t.detach().movedim(channel_dim, -1)
    rows = last.reshape(t.shape[0], -1, t.shape[channel_dim])
    weights = position_weights(weights, last)
    if weights is None:
        return rows.mean(1, dtype=torch.float64).float()
    shape = last.shape[:-1]
    if weights.shape != shape[: weights.dim()]:
        raise ValueError(
            f"collect_samples: argument inputs: expected weights of {tuple(shape)}, got "
            f"{tuple(weights.shape)}"
        )
    w = weights.to(t.device, torch.float64).view(
        *weights.shape, *[1] * (len(shape) - weights.dim())
    )
    w = w.expand(shape).reshape(rows.shape[:2])
    kept = w.sum(1) > 0
    means = (rows[kept] * w[kept, :, None]).sum(1) / w[kept].sum(1, keepdim=True)
    return means.float()
