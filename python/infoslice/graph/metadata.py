"""What an operator gives, told from the metadata of its arguments instead of by running it.

A fake tensor knows shape, strides, type and device; to send one through torch's own machinery takes
a third of a millisecond an operator, ten times what the rest of a recording takes. Most
operators of a network are called many times on arguments of the same metadata, and most others are
one of a few whose results follow a plain formula. Whatever is neither, or is anything but
plain tensors under plain settings, runs as ever: :meth:`Results.run` gives what ``func`` would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

__all__ = ["Results", "fake"]

_META = torch.device("meta")
_PLAIN = frozenset((
    int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format,
))  # fmt: skip


def fake(
    mode: FakeTensorMode,
    shape: Sequence[int],
    stride: Sequence[int] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """A new fake tensor, row-major if ``stride`` is None."""
    with torch._C._DisableTorchDispatch():
        if stride is None:
            empty = torch.empty(shape, dtype=dtype, device=_META)
        else:
            empty = torch.empty_strided(shape, stride, dtype=dtype, device=_META)
    return FakeTensor(mode, empty, device)


class _New(NamedTuple):
    """A result with memory of its own."""

    shape: tuple[int, ...]
    stride: tuple[int, ...] | None
    dtype: torch.dtype
    device: torch.device


class _View(NamedTuple):
    """A result in the memory of a tensor argument, counted in order."""

    argument: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dtype: torch.dtype
    device: torch.device


_Result = _New | _View | int  # int: the tensor argument of that number itself


class Results:
    """Results of operators on fake tensors, from what was seen before and from formulas.

    ``capacity``: how many calls are remembered; when it is full all are forgotten.
    """

    def __init__(self, capacity: int = 4096) -> None:
        self.capacity = capacity
        self.hits = 0
        self._known: dict[Any, _Result | tuple[type, tuple[_Result, ...]]] = {}

    def __len__(self) -> int:
        return len(self._known)

    def run(self, func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What ``func(*args, **kwargs)`` gives."""
        key: list[Any] = [func]
        tensors: list[Any] = []
        if not _describe(args, key, tensors) or not tensors or not _ordinary(func, tensors[0]):
            return func(*args, **kwargs)
        if kwargs:
            key.extend(kwargs)
            if not _describe(kwargs.values(), key, tensors):
                return func(*args, **kwargs)
        key.append(_settings())
        signature = tuple(key)
        known = self._known.get(signature)
        if known is None:
            formula = None if kwargs else _FORMULAS.get(func)
            known = formula(args, tensors) if formula is not None else None
            if known is not None:
                self._remember(signature, known)
        if known is not None:
            self.hits += 1
            if isinstance(known, tuple) and isinstance(known[0], type):
                return known[0](_make(one, tensors) for one in known[1])
            return _make(known, tensors)
        before = _states(tensors)
        result = func(*args, **kwargs)
        if before == _states(tensors):  # else it changed the form of an argument
            outcome = _outcome(result, tensors)
            if outcome is not None:
                self._remember(signature, outcome)
        return result

    def _remember(self, signature: Any, outcome: Any) -> None:
        if len(self._known) >= self.capacity:
            self._known.clear()
        self._known[signature] = outcome


def _describe(values: Any, key: list[Any], tensors: list[Any]) -> bool:
    """Append what the result may depend on; False if that cannot be said."""
    for value in values:
        kind = type(value)
        if kind is FakeTensor:
            if (
                value.constant is not None
                or value.requires_grad
                or value.layout is not torch.strided
                or value.dtype.is_complex
            ):
                return False
            # The same tensor given twice is not the same as two alike.
            twin = next((i for i, known in enumerate(tensors) if known is value), -1)
            key += (
                value.shape, value.stride(), value.storage_offset(), value.dtype,
                value.fake_device, twin,
            )  # fmt: skip
            tensors.append(value)
        elif kind in _PLAIN:
            key += (kind, value)  # 1, 1.0 and True are equal, and not the same
        elif kind is list or kind is tuple:
            key += (kind, len(value))
            if not _describe(value, key, tensors):
                return False
        else:
            return False
    return True


def _ordinary(func: Any, tensor: Any) -> bool:
    """Whether nothing but the arguments decides, and nobody else listens."""
    return (
        getattr(func, "namespace", None) == "aten"
        and torch._C._len_torch_dispatch_stack() == 1
        and not torch._C._is_any_autocast_enabled()
        and not torch.is_inference_mode_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None
        and tensor.fake_mode.shape_env is None
    )


def _settings() -> tuple[Any, ...]:
    """What else decides: the type of numbers, and which attention lays out its result."""
    return (
        torch.get_default_dtype(),
        torch._C._get_flash_sdp_enabled(),
        torch._C._get_mem_efficient_sdp_enabled(),
        torch._C._get_math_sdp_enabled(),
    )


def _states(tensors: Sequence[Any]) -> list[Any]:
    return [
        (t.shape, t.stride(), t.storage_offset(), t.dtype, t.fake_device, t.constant is None,
         t.requires_grad, t.untyped_storage()._cdata)
        for t in tensors
    ]  # fmt: skip


def _outcome(result: Any, tensors: Sequence[Any]) -> Any:
    """The result as it can be made again, None if it cannot."""
    if type(result) is FakeTensor:
        return _one(result, tensors)
    if type(result) in (tuple, list) and result:
        made = tuple(_one(item, tensors) for item in result)
        if None in made:
            return None
        fresh = [r.untyped_storage()._cdata for r, m in zip(result, made, strict=True)
                 if isinstance(m, _New)]  # fmt: skip
        return (type(result), made) if len(set(fresh)) == len(fresh) else None
    return None


def _one(result: Any, tensors: Sequence[Any]) -> _Result | None:
    if (
        type(result) is not FakeTensor
        or result.constant is not None
        or result.requires_grad
        or result.layout is not torch.strided
        or result.dtype.is_complex
    ):
        return None
    form = (tuple(result.shape), result.stride())
    home = result.untyped_storage()
    for i, tensor in enumerate(tensors):
        if tensor is result:
            return i
    sharing = [i for i, t in enumerate(tensors) if t.untyped_storage()._cdata == home._cdata]
    if sharing:
        source = tensors[sharing[0]]
        begin, end = int(result.storage_offset()), int(result.storage_offset()) + _span(result)
        # Of two arguments in one memory nobody knows which it is a view of.
        if len(sharing) > 1 or source.dtype != result.dtype or begin < source.storage_offset():
            return None
        if end > source.storage_offset() + _span(source):
            return None
        return _View(sharing[0], *form, begin, result.dtype, result.fake_device)
    if result.storage_offset() or home.nbytes() != _span(result) * result.dtype.itemsize:
        return None
    return _New(*form, result.dtype, result.fake_device)


def _span(tensor: Any) -> int:
    """Entries from the first to the last."""
    if not tensor.numel():
        return 0
    return 1 + sum(int(n - 1) * int(s) for n, s in zip(tensor.shape, tensor.stride(), strict=True))


def _make(one: _Result, tensors: Sequence[Any]) -> Any:
    if isinstance(one, int):
        return tensors[one]
    if isinstance(one, _New):
        return fake(tensors[0].fake_mode, *one)
    home = tensors[one.argument]
    with torch._C._DisableTorchDispatch():
        view = torch.empty(0, dtype=one.dtype, device=_META)
        view.set_(home.untyped_storage(), one.offset, one.shape, one.stride)
    return FakeTensor(home.fake_mode, view, one.device)


# ---- formulas: for row-major tensors of one floating type on one device, unless views keep strides

_Formula = Callable[[Sequence[Any], Sequence[Any]], _Result | None]


def _alike(tensors: Sequence[Any]) -> bool:
    first = tensors[0]
    return first.dtype.is_floating_point and all(
        t.dtype is first.dtype
        and t.fake_device == first.fake_device
        and t.stride() == _row_major(t.shape)
        for t in tensors
    )


def _row_major(shape: Sequence[int]) -> tuple[int, ...]:
    strides, step = [], 1
    for n in reversed(shape):
        strides.append(step)
        step *= n
    return tuple(reversed(strides))


def _new(shape: Sequence[int], tensors: Sequence[Any]) -> _New | None:
    """A row-major result like the arguments; none without entries."""
    whole = tuple(shape)
    if not whole or min(whole) < 1:
        return None
    return _New(whole, None, tensors[0].dtype, tensors[0].fake_device)


def _pointwise(args: Sequence[Any], tensors: Sequence[Any]) -> _New | None:
    if not _alike(tensors) or any(t.shape != tensors[0].shape for t in tensors):
        return None
    return _new(tensors[0].shape, tensors)


def _pointwise_in_place(args: Sequence[Any], tensors: Sequence[Any]) -> int | None:
    if not _alike(tensors) or any(t.shape != tensors[0].shape for t in tensors):
        return None
    return 0


def _batch_norm(args: Sequence[Any], tensors: Sequence[Any]) -> _New | None:
    x, training = args[0], args[5]
    fits = len(args) == 9 and training is False and len(tensors) == 5 and x.dim() > 1
    if not fits or not _alike(tensors) or any(t.shape != x.shape[1:2] for t in tensors[1:]):
        return None
    return _new(x.shape, tensors)


def _layer_norm(args: Sequence[Any], tensors: Sequence[Any]) -> _New | None:
    x, normalized = args[0], list(args[1])
    tail = list(x.shape[x.dim() - len(normalized) :])
    if not normalized or tail != normalized or not _alike(tensors):
        return None
    if any(list(t.shape) != normalized for t in tensors[1:]):
        return None
    return _new(x.shape, tensors)


def _linear(args: Sequence[Any], tensors: Sequence[Any]) -> _New | None:
    x, weight, bias = args[0], args[1], args[2] if len(args) > 2 else None
    if not _alike(tensors) or weight.dim() != 2 or x.dim() < 2 or x.shape[-1] != weight.shape[1]:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    return _new((*x.shape[:-1], weight.shape[0]), tensors)


def _convolution(args: Sequence[Any], tensors: Sequence[Any]) -> _New | None:
    given: tuple[Any, ...] = (*args, *(None, 1, 0, 1, 1)[len(args) - 2 :])
    x, weight, bias, stride, padding, dilation, groups = given
    axes = weight.dim() - 2
    if not _alike(tensors) or x.dim() != weight.dim() or axes < 1 or type(padding) is str:
        return None
    if x.shape[1] != weight.shape[1] * groups or groups < 1 or weight.shape[0] % groups:
        return None
    if bias is not None and bias.shape != weight.shape[:1]:
        return None
    lengths = []
    for i in range(axes):
        s, p, d = (_entry(v, i, axes) for v in (stride, padding, dilation))
        if s < 1 or p < 0 or d < 1:
            return None
        lengths.append((x.shape[2 + i] + 2 * p - d * (weight.shape[2 + i] - 1) - 1) // s + 1)
    return _new((x.shape[0], weight.shape[0], *lengths), tensors)


def _entry(value: Any, i: int, axes: int) -> int:
    """Of an argument that is given once for all axes, or once for each; 0 or -1 if it is not."""
    if isinstance(value, int):
        return value
    if len(value) == 1:
        return int(value[0])
    return int(value[i]) if len(value) == axes else -1


def _concatenation(args: Sequence[Any], tensors: Sequence[Any]) -> _New | None:
    first, axis = tensors[0], args[1] if len(args) > 1 else 0
    if not _alike(tensors) or not -first.dim() <= axis < first.dim():
        return None
    axis %= first.dim()
    front, behind = first.shape[:axis], first.shape[axis + 1 :]
    if any(
        t.dim() != first.dim() or t.shape[:axis] != front or t.shape[axis + 1 :] != behind
        for t in tensors
    ):
        return None
    return _new((*front, sum(t.shape[axis] for t in tensors), *behind), tensors)


def _regrouped(x: Any, shape: Sequence[int]) -> _View | None:
    """The entries of a row-major tensor in another shape; at most one -1, nothing empty."""
    left = math.prod(n for n in shape if n != -1)
    if min(shape, default=0) < -1 or left < 1 or x.numel() % left or not x.numel():
        return None
    whole = tuple(x.numel() // left if n == -1 else n for n in shape)
    if shape.count(-1) > 1 or math.prod(whole) != x.numel():
        return None
    return _View(0, whole, _row_major(whole), x.storage_offset(), x.dtype, x.fake_device)


def _reshape(args: Sequence[Any], tensors: Sequence[Any]) -> _View | None:
    return _regrouped(args[0], args[1]) if _alike(tensors) else None


def _flatten(args: Sequence[Any], tensors: Sequence[Any]) -> _View | None:
    given: tuple[Any, ...] = (*args, *(0, -1)[len(args) - 1 :])
    x, start, end = given
    start, end = start % max(x.dim(), 1), end % max(x.dim(), 1)
    if not _alike(tensors) or not start < end:
        return None
    return _regrouped(x, (*x.shape[:start], -1, *x.shape[end + 1 :]))


def _reordered(x: Any, order: Sequence[int]) -> _View:
    shape, stride = (tuple(given[i] for i in order) for given in (x.shape, x.stride()))
    return _View(0, shape, stride, x.storage_offset(), x.dtype, x.fake_device)


def _transpose(args: Sequence[Any], tensors: Sequence[Any]) -> _View | None:
    x, first, second = args
    if not x.dim() or not all(-x.dim() <= axis < x.dim() for axis in (first, second)):
        return None
    order = list(range(x.dim()))
    order[first], order[second] = order[second], order[first]
    return _reordered(x, order)


def _permute(args: Sequence[Any], tensors: Sequence[Any]) -> _View | None:
    x, axes = args
    if any(not -x.dim() <= axis < x.dim() for axis in axes):
        return None
    order = [axis % x.dim() for axis in axes]
    return _reordered(x, order) if sorted(order) == list(range(x.dim())) else None


def _dropout(args: Sequence[Any], tensors: Sequence[Any]) -> int | None:
    return 0 if args[2] is False else None


_aten = torch.ops.aten
_FORMULAS: dict[Any, _Formula] = {
    _aten.batch_norm.default: _batch_norm,
    _aten.layer_norm.default: _layer_norm,
    _aten.linear.default: _linear,
    _aten.cat.default: _concatenation,
    _aten.reshape.default: _reshape,
    _aten.view.default: _reshape,
    _aten.flatten.using_ints: _flatten,
    _aten.transpose.int: _transpose,
    _aten.permute.default: _permute,
    _aten.dropout.default: _dropout,
    **dict.fromkeys(
        (_aten.conv1d.default, _aten.conv2d.default, _aten.conv3d.default), _convolution
    ),
    **dict.fromkeys(
        (
            _aten.relu.default, _aten.gelu.default, _aten.silu.default, _aten.sigmoid.default,
            _aten.tanh.default, _aten.hardswish.default, _aten.hardsigmoid.default,
            _aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor,
        ),
        _pointwise,
    ),
    **dict.fromkeys(
        (
            _aten.relu_.default, _aten.silu_.default, _aten.hardswish_.default,
            _aten.hardtanh_.default, _aten.add_.Tensor, _aten.mul_.Tensor,
        ),
        _pointwise_in_place,
    ),
}  # fmt: skip
