"""Inputs of models that read tokens: uniform ids, and text that the model writes itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from infoslice.perturbation.inputs import Inputs, evaluating
from infoslice.progress import track

__all__ = ["generated_tokens", "predicts_next_token", "reads_tokens", "uniform_tokens"]


def uniform_tokens(
    model: nn.Module,
    example_inputs: Any,
    samples: int,
    *,
    length: int | None = None,
    excluded: Iterable[int] = (),
    seed: int = 0,
) -> Inputs:
    """Independent token ids, uniform over the vocabulary: the maximum-entropy text.

    The ids go through the model's own embedding, so that the first layer reads what it reads of
    text, one token at a time; the order of tokens says nothing. The example is run once to find the
    embedding and its size.

    Args:
        model: reads tokens by an embedding. Run in eval mode; nothing of it changes.
        example_inputs: a tensor, a tuple or list of arguments, or a dict of keyword arguments.
            The integer tensors ``[N, T]`` that the largest embedding reads, ``position_ids`` apart,
            become ids ``[samples, length]`` of the same dtype and device; ``attention_mask``
            becomes ones; of any other tensor the first sample is repeated.
        samples: how many sequences, >= 2.
        length: of each, in tokens; T unless given.
        excluded: ids that are not used, as those of special tokens.
        seed: equal seeds give equal ids on every device.

    Raises:
        ValueError: no argument is read by an embedding, fewer than two samples, ``length`` < 1,
            nothing left of the vocabulary, or another ``length`` than that of a tensor that cannot
            follow it.
        TypeError: floating-point tensors among the inputs, other than ``attention_mask``.
    """
    where = "uniform_tokens"
    found = _tokens(where, model, example_inputs)
    length = _checked(where, samples, found.length if length is None else length)
    allowed = _allowed(where, found.vocabulary, excluded)
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        allowed[torch.randint(len(allowed), (samples, length), generator=generator)]
        for _ in found.places
    ]
    return found.filled(where, drawn)


def generated_tokens(
    model: nn.Module,
    example_inputs: Any,
    samples: int,
    *,
    length: int | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    start: int | Tensor | None = None,
    prompt: int | Tensor | None = None,
    excluded: Iterable[int] = (),
    batch_size: int = 64,
    seed: int = 0,
    show_progress: bool = True,
) -> Inputs:
    """Text that the model writes itself: each token drawn from what it predicts after those before.

    At temperature 1 this is ancestral sampling from the distribution that the model has learnt: no
    data is used, and what its layers read is what they read of text (Williams, Chrysostomou and
    Aletras 2025, "Self-calibration for Language Model Quantization and Pruning"). By default every
    sequence starts with another token, drawn from the whole vocabulary without replacement, so that
    many subjects come up. A sequence that ends (an end-of-text token) goes on with another text.

    With a cache of keys and values each token costs one position; it is used where the model's
    forward takes ``input_ids``, ``past_key_values`` and ``use_cache``, as those of transformers do.
    Other models read the whole sequence again for each token.

    Args:
        model: causal; called as with the example inputs, gives logits ``[N, T, vocabulary]`` (a
            tensor, or an object or mapping with ``logits``). Run in eval mode; nothing of it
            changes.
        example_inputs: as for :func:`uniform_tokens`, with one tensor of token ids.
        samples: how many sequences, >= 2.
        length: of each, in tokens; that of the example unless given.
        temperature: the logits are divided by it, > 0; below 1 the text is more usual and less
            diverse.
        top_k: draw from the k most probable tokens only.
        start: token id, or ids ``[P]`` or ``[samples, P]``, that the sequences begin with.
        prompt: the same, of what stands above the text and says what kind is wanted. It is no part
            of the sequences: a beginning that all share would count for too much.
        excluded: ids that are never drawn.
        batch_size: sequences written at a time.
        seed: equal seeds give equal text, for any ``batch_size`` up to rounding of the logits.
        show_progress: a bar on standard error, if that is a terminal.

    Raises:
        ValueError: as for :func:`uniform_tokens`; the model does not predict next tokens;
            ``temperature``, ``top_k``, ``start``, ``prompt`` or ``batch_size`` out of range; logits
            that are not finite.
        TypeError: as for :func:`uniform_tokens`.
    """
    where = "generated_tokens"
    found = _tokens(where, model, example_inputs)
    length = _checked(where, samples, found.length if length is None else length)
    allowed = _allowed(where, found.vocabulary, excluded)
    if not temperature > 0:
        raise ValueError(f"{where}: argument temperature: expected > 0, got {temperature}")
    for name, value in (("top_k", top_k), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{where}: argument {name}: expected at least 1, got {value}")
    if not _predicts(model, found):
        raise ValueError(
            f"{where}: argument model: expected logits [N, T, {found.vocabulary}] of the next "
            f"token that depend on the tokens before alone; use uniform_tokens, or give data"
        )
    generator = torch.Generator().manual_seed(seed)
    first, hidden = torch.empty(samples, 0, dtype=torch.int64), 0
    if prompt is not None:
        first = _given(where, "prompt", prompt, samples, None, found.vocabulary)
        hidden = first.shape[1]
    if start is not None:
        begun = _given(where, "start", start, samples, length, found.vocabulary)
        first = torch.cat([first, begun], 1)
    elif prompt is None:
        first = _spread(allowed, samples, generator)
    length += hidden
    # One number per token, drawn ahead: the text does not depend on the size of the batches.
    chances = torch.rand(samples, length, generator=generator, dtype=torch.float64)
    barred = torch.ones(found.vocabulary, dtype=torch.bool)
    barred[allowed] = False
    draw = _Draw(temperature, top_k, barred)
    written = first.new_zeros(samples, length)
    written[:, : first.shape[1]] = first
    begins = range(0, samples, batch_size)
    steps = [(b, t) for b in begins for t in range(first.shape[1], length)]
    with evaluating(model), torch.no_grad():
        for begin, position in track(steps, "writing text", show=show_progress):
            rows = slice(begin, begin + batch_size)
            if position == first.shape[1]:
                reader = _Reader(model, found)
            logits = reader.logits(written[rows, :position])
            written[rows, position] = draw(logits, chances[rows, position])
    return found.filled(where, [written[:, hidden:]])


def reads_tokens(model: nn.Module, example_inputs: Any) -> bool:
    """Whether an embedding of ``model`` reads one of the example inputs. Runs them once."""
    inputs = Inputs.of(example_inputs)
    integers = [t for t in inputs.tensors() if not t.is_floating_point()]
    return any(t.dim() == 2 for t in integers) and bool(_embedded(model, inputs))


def predicts_next_token(model: nn.Module, example_inputs: Any) -> bool:
    """Whether :func:`generated_tokens` applies: one tensor of token ids, and causal logits.

    Runs the example, and a few tokens twice: the last of them must not change what is predicted
    from those before it.
    """
    return _predicts(model, _tokens("predicts_next_token", model, example_inputs))


class _Tokens(NamedTuple):
    """Which tensors of the example inputs are token ids, and of how many tokens."""

    example: Inputs
    places: tuple[int, ...]
    vocabulary: int

    @property
    def ids(self) -> Tensor:
        return self.example.tensors()[self.places[0]]

    @property
    def length(self) -> int:
        return int(self.ids.shape[1])

    def filled(self, where: str, drawn: Sequence[Tensor]) -> Inputs:
        """The example with other ids, ``[N, T]`` in the order of ``places``."""
        samples, length = drawn[0].shape
        order = iter(range(len(self.example.tensors())))
        mask = self.example.kwargs.get("attention_mask")

        def fill(tensor: Tensor) -> Tensor:
            place = next(order)
            if place in self.places:
                return drawn[self.places.index(place)].to(tensor.device, tensor.dtype)
            if tensor is mask and tensor.dim() == 2:
                return torch.ones(samples, length, dtype=tensor.dtype, device=tensor.device)
            if tensor.is_floating_point():
                raise TypeError(
                    f"{where}: argument example_inputs: expected token ids and what goes with "
                    f"them, got {tensor.dtype} {tuple(tensor.shape)}; give such models real inputs"
                )
            row = tensor[:1]
            if length != self.length and row.dim() > 1 and row.shape[1] == self.length:
                if row.dim() != 2 or bool((row != row[0, 0]).any()):
                    raise ValueError(
                        f"{where}: argument length: expected {self.length}, that of another tensor "
                        f"{tuple(tensor.shape)} of the example inputs, got {length}; give an "
                        f"example of that length"
                    )
                row = row[:, :1].expand(1, length)
            return row.expand(samples, *row.shape[1:]).clone()

        return self.example.map(fill)


class _Embeddings(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every embedding that runs: how many entries, and where the ids lie that it reads."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.read: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.embedding.default:
            entries, address = int(args[0].shape[0]), args[1].data_ptr()
            self.read[address] = max(entries, self.read.get(address, 0))
        return func(*args, **(kwargs or {}))


def _embedded(model: nn.Module, inputs: Inputs) -> dict[int, int]:
    """Number among the tensors of ``inputs`` -> entries of the largest embedding that reads it."""
    with evaluating(model), torch.no_grad(), _Embeddings() as seen:
        model(*inputs.args, **inputs.kwargs)
    tensors = enumerate(inputs.tensors())
    return {i: seen.read[t.data_ptr()] for i, t in tensors if t.data_ptr() in seen.read}


def _tokens(where: str, model: nn.Module, example_inputs: Any) -> _Tokens:
    inputs = Inputs.of(example_inputs)
    entries = _embedded(model, inputs)
    if len(entries) > 1:  # a table of positions may be the larger one
        positions = inputs.kwargs.get("position_ids")
        tensors = inputs.tensors()
        entries = {i: n for i, n in entries.items() if tensors[i] is not positions}
    if not entries:
        raise ValueError(
            f"{where}: argument example_inputs: expected a tensor of token ids [N, T] that an "
            f"embedding of the model reads, got none among "
            f"{[(t.dtype, tuple(t.shape)) for t in inputs.tensors()]}"
        )
    largest = max(entries.values())
    found = _Tokens(inputs, tuple(i for i, n in entries.items() if n == largest), largest)
    if found.ids.dim() != 2:
        raise ValueError(
            f"{where}: argument example_inputs: expected token ids [N, T], got "
            f"{tuple(found.ids.shape)}"
        )
    return found


def _checked(where: str, samples: int, length: int) -> int:
    if samples < 2:
        raise ValueError(f"{where}: argument samples: expected at least 2, got {samples}")
    if length < 1:
        raise ValueError(f"{where}: argument length: expected at least 1, got {length}")
    return length


def _allowed(where: str, vocabulary: int, excluded: Iterable[int]) -> Tensor:
    """Ids that may be used, sorted."""
    barred = set(excluded)
    wrong = sorted(i for i in barred if not 0 <= i < vocabulary)
    if wrong or len(barred) == vocabulary:
        raise ValueError(
            f"{where}: argument excluded: expected some of the ids 0 to {vocabulary - 1}, got "
            f"{wrong or 'all'}"
        )
    return torch.tensor([i for i in range(vocabulary) if i not in barred])


def _spread(allowed: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """First tokens ``[samples, 1]``, none twice before all have had their turn."""
    rounds = -(-samples // len(allowed))
    orders = [torch.randperm(len(allowed), generator=generator) for _ in range(rounds)]
    return allowed[torch.cat(orders)[:samples]].unsqueeze(1)


def _given(
    where: str, name: str, value: int | Tensor, samples: int, most: int | None, vocabulary: int
) -> Tensor:
    """``[samples, P]`` of token ids that the caller gave, P at most ``most``."""
    ids = torch.as_tensor(value).to("cpu", torch.int64)
    ids = ids.reshape(1, -1) if ids.dim() < 2 else ids
    fits = ids.dim() == 2 and len(ids) in (1, samples) and ids.shape[1] >= 1
    if most is not None and ids.shape[-1] > most:
        fits = False
    if not fits or bool(((ids < 0) | (ids >= vocabulary)).any()):
        limit = "" if most is None else f", P at most {most}"
        raise ValueError(
            f"{where}: argument {name}: expected a token id, [P] or [{samples}, P] of them{limit}, "
            f"from 0 to {vocabulary - 1}, got {value}"
        )
    return ids.expand(samples, -1)


def _logits(output: Any) -> Tensor | None:
    if isinstance(output, Mapping):
        output = output.get("logits")
    found = getattr(output, "logits", output)
    return found if isinstance(found, Tensor) else None


def _predicts(model: nn.Module, found: _Tokens) -> bool:
    if len(found.places) > 1:
        return False
    # A few tokens tell, unless other tensors (positions) fix the length.
    mask = found.example.kwargs.get("attention_mask")
    fixed = [t for t in found.example.tensors() if t is not found.ids and t is not mask]
    ids = torch.arange(found.length if fixed else 4).remainder(found.vocabulary).repeat(2, 1)
    ids[1, -1] = (ids[1, -1] + 1) % found.vocabulary
    inputs = found.filled("predicts_next_token", [ids])
    with evaluating(model), torch.no_grad():
        logits = _logits(model(*inputs.args, **inputs.kwargs))
    if logits is None or logits.shape != (*ids.shape, found.vocabulary):
        return False
    return torch.allclose(logits[0, :-1], logits[1, :-1], rtol=1e-3, atol=1e-4)


class _Reader:
    """Logits after the last token of sequences that grow, by a cache if the model keeps one."""

    def __init__(self, model: nn.Module, found: _Tokens) -> None:
        self.model, self.found = model, found
        taken = inspect.signature(model.forward).parameters
        self.caches = {"input_ids", "past_key_values", "use_cache"} <= set(taken)
        self.cache: Any = None
        self.known = 0

    def logits(self, ids: Tensor) -> Tensor:
        """``[N, vocabulary]`` after ``ids [N, T]``, which continue those of the call before."""
        if self.caches:
            new = ids[:, self.known :].to(self.found.ids.device, self.found.ids.dtype)
            output = self.model(input_ids=new, past_key_values=self.cache, use_cache=True)
            self.cache, self.known = getattr(output, "past_key_values", None), ids.shape[1]
            self.caches = self.cache is not None
        else:
            inputs = self.found.filled("generated_tokens", [ids])
            output = self.model(*inputs.args, **inputs.kwargs)
        return cast(Tensor, _logits(output))[:, -1]


class _Draw(NamedTuple):
    """One token for each row, by the inverse of the cumulative distribution."""

    temperature: float
    top_k: int | None
    barred: Tensor

    def __call__(self, logits: Tensor, chances: Tensor) -> Tensor:
        """Ids ``[N]`` from logits ``[N, vocabulary]`` and numbers ``[N]`` in [0, 1)."""
        scaled = logits.to("cpu", torch.float64) / self.temperature
        if not bool(scaled.isfinite().all()):
            raise ValueError(
                "generated_tokens: argument model: expected finite logits, got NaN or infinity"
            )
        scaled.masked_fill_(self.barred, -torch.inf)
        if self.top_k is not None and self.top_k < scaled.shape[1]:
            least = scaled.topk(self.top_k).values[:, -1:]
            scaled.masked_fill_(scaled < least, -torch.inf)
        below = scaled.softmax(-1).cumsum(-1)
        aim = chances.unsqueeze(1) * below[:, -1:]
        return torch.searchsorted(below, aim, right=True).squeeze(1)
