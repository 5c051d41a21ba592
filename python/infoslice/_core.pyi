"""CPU kernels as functions of NumPy arrays; arguments are positional, in the order of the schemas."""

from typing import Any

from numpy.typing import NDArray

def build_info() -> dict[str, Any]: ...
def register_torch(library_directory: str, version: str) -> None: ...
def slice_channels(
    tensors: list[Any], axis_counts: list[int], axes: list[int], keep: list[NDArray[Any]], /
) -> list[Any]: ...
