"""What tells how far moments are off: fourth moments, and how the samples of a batch cluster."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor

__all__ = ["SamplingErrors"]


@dataclass(frozen=True, eq=False)
class SamplingErrors:
    """Sums over the rows u of a layer's input, taken from the mean, weighted by w; float64.

    ``fourth = sum w |u|^4`` and ``third = sum w |u|^2 u`` ``[d]`` (needed to move the fourth to
    another mean) give Ledoit-Wolf shrinkage. They are kept of full covariances; else ``third`` is
    empty.

    A *cluster* is all that one sample (an image, a sequence) contributes: its positions resemble
    each other. With W_i the sum of the weights of cluster i and m_i the mean of its u, kept are
    ``clusters``, how many have W_i > 0, ``cluster_weight = sum W_i^2``, ``cluster_offset =
    sum W_i^2 m_i`` and ``cluster_scatter = sum W_i^2 m_i^2``, ``[d]`` both.
    """

    third: Tensor
    fourth: Tensor
    clusters: Tensor
    cluster_weight: Tensor
    cluster_offset: Tensor
    cluster_scatter: Tensor

    def shifted(self, shift: Tensor, count: float, scatter: Tensor) -> SamplingErrors:
        """The same sums of ``u + shift``, for u of mean 0 with that count and scatter."""
        third, fourth = self.third, self.fourth
        if third.numel():
            square, trace = shift.dot(shift), scatter.diagonal().sum()
            turned = scatter @ shift
            fourth = (
                fourth
                + 4 * shift.dot(third)
                + 4 * shift.dot(turned)
                + square * (2 * trace + count * square)
            )
            third = third + (trace + count * square) * shift + 2 * turned
        return SamplingErrors(
            third,
            fourth,
            self.clusters,
            self.cluster_weight,
            self.cluster_offset + self.cluster_weight * shift,
            self.cluster_scatter + shift * (2 * self.cluster_offset + self.cluster_weight * shift),
        )

    def __add__(self, other: SamplingErrors) -> SamplingErrors:
        return SamplingErrors(
            *(getattr(self, f.name) + getattr(other, f.name) for f in fields(self))
        )
