"""Inputs fitted until a network sees the statistics that it has recorded in training."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from infoslice.perturbation.inputs import Inputs, evaluating
from infoslice.perturbation.norms import normalised, normalised_layers
from infoslice.progress import track

__all__ = ["match", "recorded_layers"]


def recorded_layers(model: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers of ``model`` that hold running statistics."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def match(
    model: nn.Module,
    inputs: Inputs,
    *,
    steps: int = 150,
    learning_rate: float = 0.3,
    batch_size: int = 64,
    show_progress: bool = True,
) -> Inputs:
    """Fit ``inputs`` until the norms of the network see the statistics that they ask for.

    Minimises, by Adam with a cosine rate, the sum over batch-norm layers of the channel means of::

        (mean - running_mean)^2 / running_var  +  (sqrt(var / running_var) - 1)^2

    where mean and var are those of all samples together. In eval mode samples do not see each
    other, so both are sums over batches: one pass adds them up, a second carries the gradient back
    batch by batch, and memory is bounded by one batch while the fit is that of the whole. Without
    further terms the fit stays close to its start: it adds the recorded moments and nothing else to
    the maximum-entropy noise (Yin et al. 2020 use the same loss, with image priors and labels
    besides).

    A network without running statistics but with layer norms or RMS norms is asked for the same at
    its normalised points, with mean 0 and variance 1 of every channel over samples and tokens: what
    a norm makes of its input before scale and shift has mean square 1 over the channels of each
    token, and of all ways to share that among the channels this one has the largest entropy. Unlike
    running statistics it is an assumption, nothing that was recorded: channels of trained networks
    share it unequally.

    Args:
        model: run in eval mode; nothing of it changes.
        inputs: where the fit starts, as from :func:`noise`. Not changed.
        steps: of Adam, >= 1.
        learning_rate: of Adam, in the unit of the inputs.
        batch_size: samples per forward, >= 1.
        show_progress: a bar on standard error, if that is a terminal.

    Raises:
        ValueError: none of these norms was called, ``steps`` or ``batch_size`` < 1, or the loss is
            not finite.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"match: argument {name}: expected at least 1, got {value}")
    fitted = inputs.map(lambda t: t.detach().clone())
    free = fitted.tensors()
    batches = list(fitted.batches(batch_size))  # views: what is fitted is seen through them
    optimizer = torch.optim.Adam(free, lr=learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with evaluating(model), _Sums(model) as sums:
        for _ in track(range(steps), "matching recorded statistics", show=show_progress):
            totals: dict[nn.Module, Tensor] = {}
            with torch.no_grad():
                for batch in batches:
                    for norm, values in sums.of(batch).items():
                        totals[norm] = totals[norm] + values if norm in totals else values
            slopes = _slopes(totals)
            for tensor in free:
                tensor.grad = torch.zeros_like(tensor)
            for number, batch in enumerate(batches):
                moving = batch.map(lambda t: t.detach().requires_grad_())
                with torch.enable_grad():
                    parts = [(v * slopes[norm]).sum() for norm, v in sums.of(moving).items()]
                    pull = torch.autograd.grad(torch.stack(parts).sum(), moving.tensors())
                at = slice(number * batch_size, (number + 1) * batch_size)
                for tensor, gradient in zip(free, pull, strict=True):
                    cast(Tensor, tensor.grad)[at] = gradient
            optimizer.step()
            schedule.step()
    return fitted


class _Sums:
    """Adds up what the norms see, ``[3, C]`` for each.

    The rows: how many values, the sum of their distances from the mean asked for, and the sum of
    the squares of these.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: dict[nn.Module, Tensor] = {}

    def __enter__(self) -> _Sums:
        layers = recorded_layers(self.model) or normalised_layers(self.model)
        self.hooks = [layer.register_forward_pre_hook(self._add) for layer in layers]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def of(self, batch: Inputs) -> dict[nn.Module, Tensor]:
        """Run one batch. The layers are those called."""
        self.seen = {}
        self.model(*batch.args, **batch.kwargs)
        return self.seen

    def _add(self, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0] if isinstance(norm, _BatchNorm) else normalised(norm, args[0]).movedim(-1, 1)
        mean = _asked_for(norm, x)[0]
        axes = [axis for axis in range(x.dim()) if axis != 1]
        x = x - mean.view(-1, *[1] * (len(axes) - 1))
        count = x.new_full((x.shape[1],), x.numel() / x.shape[1])
        values = torch.stack([count, x.sum(axes), x.square().sum(axes)])
        self.seen[norm] = self.seen[norm] + values if norm in self.seen else values


def _asked_for(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor, float]:
    """Mean and variance that a norm should see, ``[C]`` or one for all channels, and its eps."""
    if isinstance(norm, _BatchNorm):
        return cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var), norm.eps
    return like.new_zeros(()), like.new_ones(()), 1e-6


def _slopes(totals: dict[nn.Module, Tensor]) -> dict[nn.Module, Tensor]:
    """Gradient of the loss with respect to the sums of every layer."""
    if not totals:
        raise ValueError(
            "match: argument model: expected batch-norm layers with running statistics, layer "
            "norms or RMS norms, got none that the forward calls; use gaussian noise"
        )
    with torch.enable_grad():
        terms = []
        for norm, sums in totals.items():
            count, first, second = sums.requires_grad_()
            _, asked, eps = _asked_for(norm, first)
            recorded = asked + eps
            offset = first / count
            variance = (second / count - offset.square()).clamp_min(0)
            # The square root has no gradient at a constant channel; eps keeps it off zero.
            spread = ((variance + eps) / recorded).sqrt() - 1
            terms.append((offset.square() / recorded + spread.square()).mean())
        loss = torch.stack(terms).sum()
        if not bool(loss.isfinite()):
            raise ValueError(
                f"match: argument model: expected finite activations, got a loss of {loss.item()}"
            )
        slopes = torch.autograd.grad(loss, list(totals.values()))
    return dict(zip(totals, slopes, strict=True))
