"""``spanning_tree``: minimal spanning trees of points, without their distance matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NamedTuple

import numpy as np
import torch

from infoslice.ops._native import T, contiguous_on_cuda, core, refuse_grad, register_fake, torch_op

__all__ = ["SpanningTree", "spanning_tree"]

_spanning_tree = torch_op("spanning_tree")

if TYPE_CHECKING:

    class SpanningTree(NamedTuple, Generic[T]):
        """``edges`` int64 [..., n - 1, 2], ``squared_lengths`` [..., n - 1], ``info`` [...]."""

        edges: T
        squared_lengths: T
        info: T

else:  # Python 3.10 has no generic named tuples

    class SpanningTree(NamedTuple):
        """``edges`` int64 [..., n - 1, 2], ``squared_lengths`` [..., n - 1], ``info`` [...]."""

        edges: Any
        squared_lengths: Any
        info: Any


def spanning_tree(points: T, base: T | None = None) -> SpanningTree[T]:
    """Minimal spanning trees under squared distances ``base_ij + |x_i - x_j|^2``.

    The tree is also that of the distances, their roots. ``base`` is what many trees have in common:
    the squared distances in further variables, computed once. Prim's algorithm, O(n^2 d) for a
    tree; no matrix of distances is made.

    Args:
        points: [..., n, d] float32 or float64, n >= 1, d >= 0, any strides.
        base: [n, n] in the dtype of ``points``, symmetric, any strides; None: zero.

    Returns:
        ``edges`` [..., n - 1, 2] in the order found from vertex 0 on: a vertex of the tree and the
        one it gains, the nearest, of several the one of the lowest index. ``squared_lengths``
        [..., n - 1] in the dtype of the input, and ``info`` [...]: 0, or 1 where a squared distance
        is NaN or infinite; then the edges are -1 and the lengths NaN.

    Raises:
        ValueError: fewer than two dimensions, no points, or a base of another shape.
        TypeError: not arrays or tensors, or of other dtypes.
        RuntimeError: a tensor that requires grad, a CUDA tensor and no CUDA kernels built, or
            another device.
    """
    if isinstance(points, torch.Tensor):
        none = points.new_empty(0, 0) if base is None else base
        refuse_grad("spanning_tree", points=points, base=none)
        return SpanningTree(*_spanning_tree(contiguous_on_cuda(points), contiguous_on_cuda(none)))
    if base is None:
        base = np.empty((0, 0), getattr(points, "dtype", None))
    return SpanningTree(*core.spanning_tree(points, base))


@register_fake("spanning_tree")
def _fake(
    points: torch.Tensor, base: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    shape = (*points.shape[:-2], points.shape[-2] - 1)
    edges = torch.empty((*shape, 2), dtype=torch.int64, device=points.device)
    lengths = torch.empty(shape, dtype=points.dtype, device=points.device)
    return edges, lengths, torch.empty(shape[:-1], dtype=torch.int32, device=points.device)
