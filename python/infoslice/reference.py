"""The ops in a few lines of float64 torch each: what they mean, for readers and for tests.

Every function has the arguments of its namesake in ``infoslice.ops`` that change the result, takes
torch tensors and computes in float64, with no thought of speed, memory or bad input.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from infoslice.ops import (
    Cholesky,
    Covariance,
    CrossCovariance,
    Elimination,
    Information,
    LogDet,
    PrecisionBlocks,
    PrecisionDiagonal,
    Selection,
    SpanningTree,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

__all__ = [
    "backward_elimination",
    "cholesky",
    "conditional_mi",
    "covariance",
    "cross_covariance",
    "forward_selection",
    "gaussian_mi",
    "logdet",
    "marginal_mi",
    "obs_elimination",
    "pairwise_mi",
    "patch_covariance",
    "patch_cross_covariance",
    "precision_blocks",
    "precision_diagonal",
    "slice_channels",
    "slice_channels_",
    "spanning_tree",
    "submatrix_logdet",
]

# -- covariance ------------------------------------------------------------------------------------


def _rows(x: Tensor, channel_dim: int, batch_dims: int) -> Tensor:
    """``x`` as ``[*batch, n, C]``."""
    return x.double().movedim(channel_dim, -1).flatten(batch_dims, -2)


def _unfold(x: Tensor, kernel_size: Any, **geometry: Any) -> Tensor:
    """The patches of ``[N, C, H, W]`` or ``[N, C, L]`` as rows ``[n, C*kh*kw]``."""
    if x.ndim == 3:  # an image of height 1: only the width is padded
        x, pad = x.unsqueeze(2), geometry.pop("padding", 0)
        x, kernel_size = F.pad(x, (pad, pad)), (1, kernel_size)
        geometry = {key: (1, value) for key, value in geometry.items()}
    return F.unfold(x.double(), kernel_size, **geometry).movedim(1, -1).flatten(0, 1)


def cross_covariance(
    x: Tensor, y: Tensor, *, channel_dim: int = -1, batch_dims: int = 0, correction: int = 1
) -> CrossCovariance[Tensor]:
    """Covariances between the channels of two inputs over the same samples."""
    x, y = _rows(x, channel_dim, batch_dims), _rows(y, channel_dim, batch_dims)
    mean_x, mean_y = x.mean(-2), y.mean(-2)
    cov = (x - mean_x.unsqueeze(-2)).mT @ (y - mean_y.unsqueeze(-2))
    return CrossCovariance(cov / (x.shape[-2] - correction), mean_x, mean_y)


def covariance(
    x: Tensor, *, channel_dim: int = -1, batch_dims: int = 0, correction: int = 1
) -> Covariance[Tensor]:
    """Covariances of the channels of one input."""
    cov, mean, _ = cross_covariance(
        x, x, channel_dim=channel_dim, batch_dims=batch_dims, correction=correction
    )
    return Covariance(cov, mean)


def patch_covariance(
    x: Tensor, kernel_size: Any, *, correction: int = 1, **geometry: Any
) -> Covariance[Tensor]:
    """Covariances of the patches that a convolution sees; geometry: stride, padding, dilation."""
    return covariance(_unfold(x, kernel_size, **geometry), correction=correction)


def patch_cross_covariance(
    x: Tensor, y: Tensor, kernel_size: Any, *, correction: int = 1, **geometry: Any
) -> CrossCovariance[Tensor]:
    """Covariances between patches and the channels of ``y`` at the output positions."""
    rows = _rows(y, 1, 0)
    return cross_covariance(_unfold(x, kernel_size, **geometry), rows, correction=correction)


# -- cholesky --------------------------------------------------------------------------------------


def _symmetric(a: Tensor) -> Tensor:
    """The matrix that the lower triangle of ``a`` describes."""
    return a.double().tril() + a.double().tril(-1).mT


def cholesky(a: Tensor) -> Cholesky[Tensor]:
    """The lower factor L of ``a = L L'``, NaN where ``info`` tells the first bad leading minor."""
    factor, info = torch.linalg.cholesky_ex(_symmetric(a))
    return Cholesky(factor.where((info == 0)[..., None, None], torch.nan).tril(), info)


def logdet(a: Tensor) -> LogDet[Tensor]:
    """``log det a``, twice the sum of the logarithms of the diagonal of L."""
    factor, info = cholesky(a)
    return LogDet(2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1), info)


def submatrix_logdet(cov: Tensor, index: Tensor) -> LogDet[Tensor]:
    """``logdet`` of the principal submatrices at the variables ``index`` [..., k]."""
    return logdet(_symmetric(cov)[index.unsqueeze(-1), index.unsqueeze(-2)])


# -- precision -------------------------------------------------------------------------------------


def precision_diagonal(a: Tensor) -> PrecisionDiagonal[Tensor]:
    """The diagonal of the inverse of ``a``."""
    factor, info = cholesky(a)
    return PrecisionDiagonal(torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1), info)


def precision_blocks(a: Tensor, block_size: int) -> PrecisionBlocks[Tensor]:
    """The diagonal blocks of the inverse of ``a``."""
    factor, info = cholesky(a)
    inverse = torch.cholesky_inverse(factor)
    starts = range(0, a.shape[-1], block_size)
    blocks = [inverse[..., i : i + block_size, i : i + block_size] for i in starts]
    return PrecisionBlocks(torch.stack(blocks, -3), info)


# -- gaussian_mi -----------------------------------------------------------------------------------


def _with_noise(cov: Tensor, y: Sequence[int], variance: float) -> Tensor:
    """The covariance after independent noise was added to the variables y."""
    noise = torch.zeros(cov.shape[-1], dtype=torch.float64)
    noise[list(y)] = variance
    return _symmetric(cov) + noise.diag()


def _entropy(cov: Tensor, variables: Sequence[int]) -> Tensor:
    """Differential entropy in nats, less the constant: 1/2 log det of the block of these."""
    index = torch.as_tensor(list(variables), dtype=torch.int64)
    return logdet(cov[..., index[:, None], index]).logdet / 2


def _information(nats: Tensor) -> Information[Tensor]:
    return Information(nats, (~nats.isfinite()).int())


def _groups(x: Sequence[int], size: int) -> list[Sequence[int]]:
    return [x[i : i + size] for i in range(0, len(x), size)]


def gaussian_mi(
    cov: Tensor, x: Sequence[int], y: Sequence[int], *, noise_variance: float = 0.0
) -> Information[Tensor]:
    """``I(X; Y) = H(X) + H(Y) - H(X, Y)``."""
    s = _with_noise(cov, y, noise_variance)
    return _information(_entropy(s, x) + _entropy(s, y) - _entropy(s, [*x, *y]))


def marginal_mi(
    cov: Tensor,
    x: Sequence[int],
    y: Sequence[int],
    *,
    group_size: int = 1,
    noise_variance: float = 0.0,
) -> Information[Tensor]:
    """``I(X_g; Y)`` of each group g."""
    each = [gaussian_mi(cov, g, y, noise_variance=noise_variance) for g in _groups(x, group_size)]
    return _information(torch.stack([e.nats for e in each], -1))


def conditional_mi(
    cov: Tensor,
    x: Sequence[int],
    y: Sequence[int],
    *,
    group_size: int = 1,
    noise_variance: float = 0.0,
) -> Information[Tensor]:
    """``I(X_g; Y | X_-g) = I(X; Y) - I(X_-g; Y)`` of each group g."""
    whole = gaussian_mi(cov, x, y, noise_variance=noise_variance).nats
    rests = [[i for i in x if i not in group] for group in _groups(x, group_size)]
    parts = [
        gaussian_mi(cov, rest, y, noise_variance=noise_variance).nats if rest else 0 * whole
        for rest in rests
    ]
    return _information(whole.unsqueeze(-1) - torch.stack(parts, -1))


def pairwise_mi(
    cov: Tensor,
    x: Sequence[int],
    y: Sequence[int],
    *,
    group_size: int = 1,
    noise_variance: float = 0.0,
) -> Information[Tensor]:
    """``sum_j I(X_g; Y_j)`` of each group g."""
    options: dict[str, Any] = {"group_size": group_size, "noise_variance": noise_variance}
    each = [marginal_mi(cov, x, [j], **options).nats for j in y]
    return _information(torch.stack(each).sum(0))


# -- greedy ----------------------------------------------------------------------------------------


def _one_by_one(
    value: Callable[[list[int]], Tensor], start: Sequence[int], left: list[int], count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Adds to ``start`` what raises the value most, ``count`` times; the raises; info."""
    chosen, raises = list(start), [torch.zeros(0, dtype=torch.float64)]
    for _ in range(count):
        each = torch.stack([value([*chosen, c]) for c in left]) - value(chosen)
        raises.append(each.max()[None])
        chosen.append(left.pop(int(each.argmax())))
    gains = torch.cat(raises)
    return torch.tensor(chosen[len(start) :]), gains, (~gains.isfinite()).any().int()


def forward_selection(
    cov: Tensor,
    x: Sequence[int],
    y: Sequence[int],
    count: int,
    *,
    group_size: int = 1,
    start: Sequence[int] = (),
    noise_variance: float = 0.0,
) -> Selection[Tensor]:
    """Adds the group that raises ``I(X_S; Y)`` most, or without y ``H(X_S)``."""
    s, groups = _with_noise(cov, y, noise_variance), _groups(x, group_size)

    def value(chosen: list[int]) -> Tensor:
        variables = [i for g in chosen for i in groups[g]]
        given_y = _entropy(s, [*variables, *y]) - _entropy(s, y) if len(y) else 0.0
        return _entropy(s, variables) - given_y

    left = [g for g in range(len(groups)) if g not in start]
    return Selection(*_one_by_one(value, start, left, count))


def _blocks(
    matrices: Sequence[Tensor], group_size: int | Sequence[int], channels: list[int]
) -> list[Tensor]:
    """Of each layer's matrix the rows and columns of these channels."""
    sizes = [group_size] * len(matrices) if isinstance(group_size, int) else group_size
    own = [[c * r + i for c in channels for i in range(r)] for r in sizes]
    return [_symmetric(m)[v][:, v] for m, v in zip(matrices, own, strict=True)]


def _left(matrix: Tensor, group_size: int | Sequence[int], keep: Sequence[int]) -> list[int]:
    r = group_size if isinstance(group_size, int) else group_size[0]
    return [c for c in range(len(matrix) // r) if c not in keep]


def backward_elimination(
    precision: Sequence[Tensor],
    given_y: Sequence[Tensor],
    count: int,
    *,
    group_size: int | Sequence[int] = 1,
    keep: Sequence[int] = (),
) -> Elimination[Tensor]:
    """Removes what raises ``I(X_R; Y | X_rest)`` of the removed channels R least."""

    def value(removed: list[int]) -> Tensor:
        a, b = (_blocks(m, group_size, removed) for m in (precision, given_y))
        each = [logdet(p).logdet - logdet(q).logdet for p, q in zip(a, b, strict=True)]
        return torch.stack(each).sum() / 2

    left = _left(precision[0], group_size, keep)
    order, gains, info = _one_by_one(value, (), left, count)
    return Elimination(order, -gains, info)


def obs_elimination(
    precision: Sequence[Tensor],
    gram: Sequence[Tensor],
    count: int,
    *,
    group_size: int | Sequence[int] = 1,
    keep: Sequence[int] = (),
) -> Elimination[Tensor]:
    """Removes what raises the least-squares error ``tr(P_RR^-1 G_RR)`` of all removals R least."""

    def value(removed: list[int]) -> Tensor:
        p, g = (_blocks(m, group_size, removed) for m in (precision, gram))
        each = [torch.linalg.solve(*pair).trace() for pair in zip(p, g, strict=True)]
        return -torch.stack(each).sum()

    left = _left(precision[0], group_size, keep)
    order, gains, info = _one_by_one(value, (), left, count)
    return Elimination(order, -gains, info)


# -- slice_channels --------------------------------------------------------------------------------


def slice_channels(
    tensors: Sequence[Tensor], dims: Sequence[Sequence[int]], keep: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """The kept indices along each named axis of each tensor."""
    results = []
    for tensor, axes, indices in zip(tensors, dims, keep, strict=True):
        for axis, index in zip(axes, indices, strict=True):
            tensor = torch.index_select(tensor, axis, index)
        results.append(tensor)
    return results


def slice_channels_(
    tensors: Sequence[Tensor], dims: Sequence[Sequence[int]], keep: Sequence[Sequence[Tensor]]
) -> list[Tensor]:
    """The same, with each tensor given the place of the result."""
    for tensor, result in zip(tensors, slice_channels(tensors, dims, keep), strict=True):
        tensor.data = result
    return list(tensors)


# -- spanning_tree ---------------------------------------------------------------------------------


def spanning_tree(points: Tensor, base: Tensor | None = None) -> SpanningTree[Tensor]:
    """The vertex nearest to the tree joins it, from vertex 0 on, until all are in."""
    if points.dim() > 2:
        trees = [spanning_tree(p, base) for p in points]
        return SpanningTree(*(torch.stack(part) for part in zip(*trees, strict=True)))
    x = points.double()
    squared = (x[:, None] - x).square().sum(-1) + (0 if base is None else base.double())
    tree, edges, lengths = [0], [], []
    for _ in range(len(x) - 1):
        rows = squared[tree].index_fill(1, torch.tensor(tree), torch.inf)
        gained = int(rows.amin(0).argmin())
        edges.append([tree[int(rows[:, gained].argmin())], gained])
        lengths.append(rows[:, gained].amin())
        tree.append(gained)
    info = torch.tensor(int(not squared.isfinite().all()), dtype=torch.int32)
    if info:
        edges, lengths = [[-1, -1]] * (len(x) - 1), [x.new_tensor(torch.nan)] * (len(x) - 1)
    return SpanningTree(
        torch.tensor(edges, dtype=torch.int64).reshape(-1, 2), x.new_tensor(lengths), info
    )
