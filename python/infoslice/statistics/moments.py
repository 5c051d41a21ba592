"""First and second moments of what a layer reads and writes; they merge exactly."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from infoslice.statistics.sampling_errors import SamplingErrors
from infoslice.statistics.shrinkage import ledoit_wolf_intensity, oas_intensity

__all__ = ["Moments", "Shrinkage", "Structure"]

Structure = Literal["full", "block", "diagonal"]
Shrinkage = Literal["ledoit_wolf", "oas"]


@dataclass(frozen=True, eq=False)
class Moments:
    """Joint first and second moments of a layer's input X ``[n, d]`` and output Y ``[n, m]``.

    For a convolution X is the receptive field: ``d = channels * taps``, the taps of one channel
    next to each other, as in ``weight.flatten(1)``; every output position is a sample.

    ``count`` is n, or the sum of the weights w of the samples; ``squared_weights`` is the sum of
    their squares (None: all are one). ``scatter`` are sums of centred products, float64:
    ``scatter_x`` is ``[d, d]``, or ``[d / b, b, b]`` where only the blocks of b variables that
    stand next to each other were measured, or ``[d]``, the sums of squares alone. ``mean_y``,
    ``scatter_xy`` and ``scatter_y`` are empty (m = 0) where no output was measured, ``scatter_y``
    alone where only its covariance with X was. ``errors``: see :class:`SamplingErrors`, None where
    not asked for. ``transformed``: X is not what the layer reads but a function of it (normal
    scores), which no weights may be multiplied with.
    """

    count: float
    mean_x: Tensor
    mean_y: Tensor
    scatter_x: Tensor
    scatter_xy: Tensor
    scatter_y: Tensor
    squared_weights: float | None = None
    errors: SamplingErrors | None = None
    transformed: bool = False

    @property
    def structure(self) -> Structure:
        """What of the covariance of X is known."""
        names: dict[int, Structure] = {1: "diagonal", 2: "full", 3: "block"}
        return names[self.scatter_x.dim()]

    def merge(self, other: Moments) -> Moments:
        """Moments of both sets of samples together (Chan, Golub and LeVeque 1983), exact.

        Sampling errors are kept if both have them. Raises ValueError for different structures.
        """
        if self.scatter_x.shape != other.scatter_x.shape or len(self.mean_y) != len(other.mean_y):
            raise ValueError(
                f"merge: argument other: expected moments of {len(self.mean_x)} inputs "
                f"({self.structure}) and {len(self.mean_y)} outputs, got {len(other.mean_x)} "
                f"({other.structure}) and {len(other.mean_y)}"
            )
        count = self.count + other.count
        share = other.count / count if count else 0.0
        mean_x = torch.lerp(self.mean_x, other.mean_x, share)
        mean_y = torch.lerp(self.mean_y, other.mean_y, share)
        one, two = self.about(mean_x, mean_y), other.about(mean_x, mean_y)
        squares = None
        if self.squared_weights is not None or other.squared_weights is not None:
            squares = self.count if self.squared_weights is None else self.squared_weights
            squares += other.count if other.squared_weights is None else other.squared_weights
        errors = one.errors or two.errors
        if one.errors is not None and two.errors is not None:
            errors = one.errors + two.errors
        elif self.count and other.count:  # those of one part alone say nothing of the whole
            errors = None
        return Moments(
            count,
            mean_x,
            mean_y,
            one.scatter_x.add_(two.scatter_x),  # both are this function's own
            one.scatter_xy.add_(two.scatter_xy),
            one.scatter_y.add_(two.scatter_y),
            squares,
            errors,
            self.transformed or other.transformed,
        )

    def about(self, mean_x: Tensor, mean_y: Tensor) -> Moments:
        """Sums about other points than the means: those of several sets of samples then add up."""
        dx, dy = self.mean_x - mean_x, self.mean_y - mean_y
        if self.structure == "full":
            scatter_x = torch.addr(self.scatter_x, dx, dx, alpha=self.count)
        else:
            rows = dx if self.structure == "diagonal" else dx.view(self.scatter_x.shape[:2])
            products = rows.square() if rows.dim() == 1 else rows[:, :, None] * rows[:, None]
            scatter_x = self.scatter_x + self.count * products
        errors = self.errors and self.errors.shifted(dx, self.count, self.scatter_x)
        return Moments(
            self.count,
            mean_x,
            mean_y,
            scatter_x,
            torch.addr(self.scatter_xy, dx, dy, alpha=self.count),
            self._about_y(dy),
            self.squared_weights,
            errors,
            self.transformed,
        )

    def _about_y(self, dy: Tensor) -> Tensor:
        if not self.scatter_y.numel():
            return self.scatter_y.clone()
        return torch.addr(self.scatter_y, dy, dy, alpha=self.count)

    @property
    def covariance_x(self) -> Tensor:
        """``[d, d]`` (or as ``scatter_x``), divided by n."""
        return self.scatter_x / self.count

    @property
    def covariance_xy(self) -> Tensor:
        """``[d, m]``, divided by n."""
        return self.scatter_xy / self.count

    @property
    def covariance_y(self) -> Tensor:
        """``[m, m]``, divided by n."""
        return self.scatter_y / self.count

    @property
    def variance_x(self) -> Tensor:
        """``[d]``, divided by n, of any structure."""
        if self.structure == "diagonal":
            return self.scatter_x / self.count
        return self.scatter_x.diagonal(dim1=-2, dim2=-1).flatten() / self.count

    @property
    def squared_norm_x(self) -> Tensor:
        """``sum w x^2`` of every variable, not centred, ``[d]``."""
        return (self.variance_x + self.mean_x.square()) * self.count

    @property
    def kish_count(self) -> float:
        """``(sum w)^2 / sum w^2``: samples of equal weight that tell as much (Kish 1965)."""
        return self.count if self.squared_weights is None else self.count**2 / self.squared_weights

    @property
    def effective_count(self) -> float:
        """How many independent samples would fix the mean of X as well as these do.

        Tokens of one sequence and pixels of one image resemble each other. With W the sum of all
        weights, W_i and m_i those and the mean of sample i (of N), and S the covariance::

            n_eff = 1 + tr(S) / v,   v = N / (N - 1) sum_i W_i^2 |m_i - mean|^2 / W^2

        v is the variance of the mean as the samples show it (the sandwich estimate for clusters;
        Kish's design effect is n / n_eff). It is N exactly for samples of one position each, and
        may exceed ``count`` where the positions of a sample balance each other.

        Raises:
            ValueError: the sampling errors were not measured, or of fewer than two samples; or
                nothing varies.
        """
        errors = self._errors("effective_count")
        clusters = float(errors.clusters)
        trace = float(self.variance_x.sum())
        if clusters < 2 or not trace > 0:
            raise ValueError(
                f"effective_count: expected at least two samples of an input that varies, got "
                f"{clusters:.0f} and a total variance of {trace}"
            )
        spread = float(errors.cluster_scatter.sum()) / self.count**2 * clusters / (clusters - 1)
        return 1 + trace / spread if spread > 0 else float("inf")

    def shrunk(self, method: Shrinkage, *, count: float | None = None) -> Moments:
        """With a covariance pulled towards a multiple of the unit matrix.

        ``(1 - rho) S + rho tr(S) / d I`` for X, where rho is Ledoit and Wolf's or the "oracle
        approximating" one (see :func:`ledoit_wolf_intensity`, :func:`oas_intensity`). Where
        outputs were measured, ``(1 - rho)`` multiplies their covariances with X, and their own is
        pulled likewise by the same rho, so that the joint covariance stays positive semidefinite.

        Args:
            method: ``"ledoit_wolf"`` needs the sampling errors, ``"oas"`` does not.
            count: independent samples, if not ``kish_count``: such as ``effective_count``, since
                both formulas take the samples for independent.

        Raises:
            ValueError: an unknown method, a covariance that is not full, sampling errors that were
                not measured, or a count < 1.
        """
        if method not in get_args(Shrinkage):
            raise ValueError(
                f"shrunk: argument method: expected one of {get_args(Shrinkage)}, got {method!r}"
            )
        if self.structure != "full":
            raise ValueError(
                f"shrunk: expected moments with a full covariance, got a {self.structure} one"
            )
        count = self.kish_count if count is None else count
        if method == "oas":
            rho = oas_intensity(self.covariance_x, count)
        else:
            errors = self._errors("shrunk")
            rho = ledoit_wolf_intensity(self.covariance_x, float(errors.fourth) / self.count, count)
        return replace(
            self,
            scatter_x=_pulled(self.scatter_x, rho),
            scatter_xy=self.scatter_xy * (1 - rho),
            scatter_y=_pulled(self.scatter_y, rho),
            errors=None,
        )

    def _errors(self, what: str) -> SamplingErrors:
        if self.errors is None or (what == "shrunk" and not self.errors.third.numel()):
            raise ValueError(
                f"{what}: expected moments measured with sampling_errors=True, got none of these"
            )
        return self.errors


def _pulled(scatter: Tensor, rho: float) -> Tensor:
    pulled = scatter * (1 - rho)
    if len(scatter):
        pulled.diagonal().add_(rho * scatter.diagonal().mean())
    return pulled
