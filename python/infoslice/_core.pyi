"""CPU kernels as functions of NumPy arrays; arguments by position, in the order of the schemas."""

from typing import Any

from numpy.typing import NDArray

def build_info() -> dict[str, Any]: ...
def register_torch(library_directory: str, version: str) -> None: ...
def backward_elimination(
    precision: list[NDArray[Any]],
    given_y: list[NDArray[Any]],
    count: int,
    group_size: list[int],
    keep: list[int],
    /,
) -> tuple[Any, Any, Any]: ...
def cholesky(a: NDArray[Any], /) -> tuple[Any, Any]: ...
def conditional_mi(
    cov: NDArray[Any], x: list[int], y: list[int], group_size: int, noise_variance: float, /
) -> tuple[Any, Any]: ...
def covariance(
    x: NDArray[Any], channel_dim: int, batch_dims: int, correction: int, dtype: Any, /
) -> tuple[Any, Any]: ...
def cross_covariance(
    x: NDArray[Any],
    y: NDArray[Any],
    channel_dim: int,
    batch_dims: int,
    correction: int,
    dtype: Any,
    /,
) -> tuple[Any, Any, Any]: ...
def forward_selection(
    cov: NDArray[Any],
    x: list[int],
    y: list[int],
    count: int,
    group_size: int,
    start: list[int],
    noise_variance: float,
    /,
) -> tuple[Any, Any, Any]: ...
def gaussian_mi(
    cov: NDArray[Any], x: list[int], y: list[int], noise_variance: float, /
) -> tuple[Any, Any]: ...
def logdet(a: NDArray[Any], /) -> tuple[Any, Any]: ...
def marginal_mi(
    cov: NDArray[Any], x: list[int], y: list[int], group_size: int, noise_variance: float, /
) -> tuple[Any, Any]: ...
def obs_elimination(
    precision: list[NDArray[Any]],
    gram: list[NDArray[Any]],
    count: int,
    group_size: list[int],
    keep: list[int],
    /,
) -> tuple[Any, Any, Any]: ...
def pairwise_mi(
    cov: NDArray[Any], x: list[int], y: list[int], group_size: int, noise_variance: float, /
) -> tuple[Any, Any]: ...
def patch_covariance(
    x: NDArray[Any],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    correction: int,
    dtype: Any,
    /,
) -> tuple[Any, Any]: ...
def patch_cross_covariance(
    x: NDArray[Any],
    y: NDArray[Any],
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    correction: int,
    dtype: Any,
    /,
) -> tuple[Any, Any, Any]: ...
def precision_blocks(a: NDArray[Any], block_size: int, /) -> tuple[Any, Any]: ...
def precision_diagonal(a: NDArray[Any], /) -> tuple[Any, Any]: ...
def spanning_tree(points: NDArray[Any], base: NDArray[Any], /) -> tuple[Any, Any, Any]: ...
def submatrix_logdet(cov: NDArray[Any], index: NDArray[Any], /) -> tuple[Any, Any]: ...
def slice_channels(
    tensors: list[Any],
    axis_counts: list[int],
    axes: list[int],
    keep: list[NDArray[Any]],
    choice: list[int],
    /,
) -> list[Any]: ...
def slice_channels_(
    tensors: list[Any],
    axis_counts: list[int],
    axes: list[int],
    keep: list[NDArray[Any]],
    choice: list[int],
    /,
) -> tuple[()]: ...
