"""Hugging Face models: the config follows the cut, so that ``save_pretrained`` simply works.

The new config is proposed and proved. Proposed: every integer of the config is doubled in turn, the
class is built without weights, and the axes that grow say what the entry has to be for the planned
shapes. Proved: what the class builds from the config, read back from its JSON, has exactly the
names, ties and shapes of the cut model, the same buffers and numbers, and calls the same operators.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from infoslice.graph.capture import Capture, capture
from infoslice.graph.cuts import set_sizes, size_cuts
from infoslice.graph.recording import Node, call_site
from infoslice.graph.shell import TensorSpec, TraceError, build_shell, named_tensors
from infoslice.replacement import copy_with, like
from infoslice.surgery import PruningPlan, Surgery

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["apply", "plan_config", "update_config"]

Entry = tuple[str | int, ...]  # path of a config entry: ("text_config", "intermediate_size")
Shapes = Mapping[str, tuple[int, ...]]
Axis = tuple[str, int]

# Surgery leaves the length of heads whole, so other entries explain an axis first.
_HEAD_LENGTHS = ("head_dim", "head_size", "d_kv", "kv_channels")


def plan_config(model: PreTrainedModel, plan: PruningPlan) -> PretrainedConfig:
    """The config of ``model`` once it is cut by ``plan``; changes nothing.

    Args:
        model: the model of the plan, cut already or not, with the config of the model not yet cut;
            on any device, meta included. Its weights are not read.
        plan: from :func:`infoslice.plan`, or that of :func:`infoslice.prune`.

    Returns:
        A new config, proved: ``from_pretrained`` will build the modules of the cut model.

    Raises:
        ValueError: no config says these widths, with the first tensor that differs and the layers
            whose widths do; or the model is not what its own config or the plan says.
        TypeError: ``model`` is no PreTrainedModel, holds adapters, or is quantised.
    """
    return _solve("plan_config", model, plan)[1].config


def apply(
    model: PreTrainedModel,
    plan: PruningPlan,
    *,
    inplace: bool = False,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
) -> Surgery:
    """:meth:`PruningPlan.apply`, and the config of the smaller model says its widths.

    ``generation_config`` stays as it is. See there and :func:`plan_config` for what is raised,
    before anything is cut.
    """
    whole, smaller = _solve("apply", model, plan)
    result = plan.apply(model, inplace=inplace, optimizer=optimizer)
    _adopt(result.model, whole, smaller)
    return result


def update_config(model: PreTrainedModel, plan: PruningPlan) -> None:
    """Make the config of a model that was cut by ``plan`` say its widths.

    For models cut elsewhere, as by :func:`infoslice.prune`. Raises as :func:`plan_config`; the
    model is then unchanged.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    if shapes != plan.new_shapes():
        raise ValueError(
            "update_config: argument model: expected one that was cut by this plan, got one in "
            f"which {_difference(plan.new_shapes(), shapes)}"
        )
    _adopt(model, *_solve("update_config", model, plan))


# ---- propose


class _Guess(NamedTuple):
    config: Any
    shapes: Shapes


def _solve(function: str, model: Any, plan: PruningPlan) -> tuple[Any, Any]:
    """The class built, without weights, from the config as it is and as it has to be."""
    _refuse(function, model)
    with _quiet():
        whole = _build(type(model), model.config)
        _same_model(function, model, whole, plan)
        target = plan.new_shapes()
        reasons = []
        for start in _starts(type(model), model.config, plan.shapes):
            found = _search(type(model), start, target)
            if found.shapes != target:
                reasons.append(_unsaid(plan, found.shapes))
                continue
            for config in _with_heads(type(model), model.config, found.config):
                try:
                    smaller = _build(type(model), _reloaded(config))
                    _prove(model, whole, smaller, plan)
                except ValueError as error:
                    reasons.append(str(error))
                else:
                    return whole, smaller
    raise ValueError(
        f"{function}: argument plan: expected widths that {type(model.config).__name__} can say, "
        f"got a cut after which {reasons[0]}; or write the model with infoslice.save_pruned, which "
        f"needs no config"
    )


def _starts(kind: type, config: Any, shapes: Shapes) -> Iterator[_Guess]:
    """The config as it is; then with an entry written out that modelling code derives if None.

    The length of the heads that stay must not follow their number.
    """
    yield _Guess(copy.deepcopy(config), shapes)
    for name in ("head_dim", "n_inner"):
        explicit = copy.deepcopy(config)
        for part in _parts(explicit):
            width, heads = _value(part, "hidden_size"), _value(part, "num_attention_heads")
            if type(width) is int and type(heads) is int and _value(part, name) is None:
                setattr(part, name, width // heads if name == "head_dim" else 4 * width)
        if _shapes(kind, explicit) == shapes:
            yield _Guess(explicit, shapes)


def _search(kind: type, guess: _Guess, target: Shapes) -> _Guess:
    """Change one entry after the other while ever more axes become what they have to be."""
    entries = list(_entries(guess.config))
    late = {entry for entry in entries if str(entry[-1]).endswith(_HEAD_LENGTHS)}
    for tried in ([entry for entry in entries if entry not in late], entries):
        better: _Guess | None = guess
        while better is not None and better.shapes != target:
            guess = better
            tried, better = _step(kind, guess, target, tried)
        guess = better or guess
    return guess


def _step(
    kind: type, guess: _Guess, target: Shapes, entries: Sequence[Entry]
) -> tuple[list[Entry], _Guess | None]:
    """The entries that bear on what is wrong, and the best single change; None if none helps."""
    wrong = _wrong(guess.shapes, target)
    bearing, votes = [], Counter[tuple[Entry, float]]()
    for entry in entries:
        value = _get(guess.config, entry)
        doubled = _shapes(kind, _with(guess.config, entry, 2 * value))
        grown = _wrong(guess.shapes, doubled) if doubled is not None else set()
        if grown:
            bearing.append(entry)
        for name, axis in grown & wrong:
            now = guess.shapes[name][axis]
            needed = value + value * (target[name][axis] - now) / (
                (doubled or {})[name][axis] - now
            )
            if needed > 0 and (type(value) is float or needed == int(needed)):
                votes[entry, type(value)(needed)] += 1
    for (entry, needed), _ in votes.most_common():
        config = _with(guess.config, entry, needed)
        shapes = _shapes(kind, config)
        if shapes is not None and len(_wrong(shapes, target)) < len(wrong):
            return bearing, _Guess(config, shapes)
    return bearing, None


def _with_heads(kind: type, old: Any, config: Any) -> Iterator[Any]:
    """``config``; where the length of heads follows from the width, with fewer heads as well."""
    yield config
    fewer, shapes = config, _shapes(kind, config)
    for entry in _entries(config):
        before, after = (_value(_get(c, entry[:-1]), "hidden_size") for c in (old, config))
        heads = _get(config, entry)
        if "head" not in str(entry[-1]) or type(before) is not int or before == after:
            continue
        if heads * after % before == 0:
            changed = _with(fewer, entry, heads * after // before)
            if _shapes(kind, changed) == shapes:
                fewer = changed
    if fewer is not config:
        yield fewer


def _entries(config: Any) -> Iterator[Entry]:
    """Paths of the numbers of a config, of its parts and its lists, that may be widths."""
    for name, value in vars(config).items():
        if name.startswith("_") or "token_id" in name:
            continue
        if type(value) is list:
            yield from ((name, i) for i, item in enumerate(value) if _is_width(name, item))
        elif _is_width(name, value):
            yield (name,)
        elif _is_config(value):
            yield from ((name, *rest) for rest in _entries(value))


def _is_width(name: str, value: Any) -> bool:
    """Whether a size may follow from it: a number above zero, of floats only a ratio."""
    is_number = type(value) is int or (type(value) is float and "ratio" in name)
    return is_number and value > 0


def _is_config(value: Any) -> bool:
    return hasattr(value, "to_json_string") and hasattr(value, "model_type")


def _parts(config: Any) -> Iterator[Any]:
    """The config and those within it."""
    yield config
    for value in vars(config).values():
        if _is_config(value):
            yield from _parts(value)


def _value(config: Any, name: str) -> Any:
    """An entry under its standard name; None if there is none."""
    return vars(config).get(config.attribute_map.get(name, name)) if _is_config(config) else None


def _get(config: Any, entry: Entry) -> Any:
    for key in entry:
        config = config[key] if isinstance(key, int) else vars(config)[key]
    return config


def _with(config: Any, entry: Entry, value: float) -> Any:
    """A copy with another value at ``entry``."""
    made = copy.deepcopy(config)
    holder = _get(made, entry[:-1])
    if isinstance(entry[-1], int):
        holder[entry[-1]] = value
    else:
        setattr(holder, entry[-1], value)
    return made


def _wrong(shapes: Shapes, target: Shapes) -> set[Axis]:
    """The axes on which two models of the same names differ."""
    return {
        (name, axis)
        for name, shape in shapes.items()
        if name in target and len(target[name]) == len(shape)
        for axis, length in enumerate(shape)
        if length != target[name][axis]
    }


def _unsaid(plan: PruningPlan, shapes: Shapes) -> str:
    """The first tensor that no config says, which layers disagree on it, and the way round."""
    target = plan.new_shapes()
    name, axis = min(_wrong(shapes, target), key=list(_places(target)).index)
    text = f"{name} has shape {target[name]}, where the nearest config gives {shapes[name]}"
    widths: dict[int, list[str]] = {}
    pattern = _wildcard(name)
    for other, shape in target.items():
        if _wildcard(other) == pattern and plan.shapes[other] == plan.shapes[name]:
            widths.setdefault(shape[axis], []).append(".".join(re.findall(r"\d+", other)))
    if len(widths) > 1:
        listed = ", ".join(f"{n} in layers {' '.join(where)}" for n, where in widths.items())
        return f"{text} ({listed}); cut all layers alike (allocation='uniform')"
    cut = [g.name for g in plan.groups if any((s.tensor, s.axis) == (name, axis) for s in g.slices)]
    return f"{text}; leave whole {' and '.join(cut) or 'what shares the config entry'}"


def _places(shapes: Shapes) -> Iterator[Axis]:
    return ((name, axis) for name, shape in shapes.items() for axis in range(len(shape)))


def _wildcard(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "*", name)


# ---- prove


def _prove(model: Any, whole: Any, smaller: Any, plan: PruningPlan) -> None:
    """Raise ValueError unless ``smaller`` is ``whole`` cut by ``plan``, but for the weights."""
    built = {name: tuple(tensor.shape) for name, tensor in named_tensors(smaller)}
    if built != plan.new_shapes():
        raise ValueError(_difference(plan.new_shapes(), built))
    if _ties(smaller) != _ties(whole):
        raise ValueError("other tensors are tied")
    saved = whole.state_dict()
    remade = dict(smaller.named_buffers())
    for name, buffer in whole.named_buffers():
        if name not in saved:
            for cut in plan.cuts:
                if cut.tensor == name:
                    buffer = buffer.index_select(cut.axis, cut.keep.to(buffer.device))
            if buffer.is_meta or not torch.equal(buffer, remade[name]):
                raise ValueError(f"the buffer {name}, which is not saved, has other values")
    for path, module in whole.named_modules():
        after = vars(smaller.get_submodule(path))
        for name, value in vars(module).items():
            new = after.get(name)
            follows = type(value) is int and type(new) is int  # a size: the operators tell
            if isinstance(value, (int, float, str)) and not follows and value != new:
                raise ValueError(f"{path}.{name} is {value} and would be {new}")
    _prove_operators(model, whole, smaller, plan)


def _prove_operators(model: Any, whole: Any, smaller: Any, plan: PruningPlan) -> None:
    """Run both on the example inputs: the same operators, arguments and shapes, one by one."""
    dtypes = {name: tensor.dtype for name, tensor in named_tensors(model)}
    inputs = pytree.tree_map_only(
        TensorSpec, lambda s: TensorSpec(s.shape, s.dtype, "cpu", s.stride), plan.inputs
    )
    cut = build_shell(_of_dtypes(whole, dtypes), plan.new_shapes())
    set_sizes(cut.module, size_cuts(plan.groups, plan.keep, whole))
    try:
        expected = capture(cut, inputs)
        got = capture(build_shell(_of_dtypes(smaller, dtypes)), inputs)
    except TraceError as error:
        raise ValueError(f"the model of that config does not run: {error}") from error
    for before, after in zip(_calls(expected), _calls(got), strict=False):
        if before[1:] != after[1:]:
            raise ValueError(
                f"the model of that config calls {call_site(after[0])} with {after[2]} where the "
                f"cut one calls {call_site(before[0])} with {before[2]}"
            )
    if len(expected.nodes) != len(got.nodes):
        raise ValueError("the model of that config calls another number of operators")


def _calls(recorded: Capture) -> Iterator[tuple[Node, Any, str, Any]]:
    """Node, operator, arguments (nodes by their number) and result of every call."""
    number = {node: f"%{i}" for i, node in enumerate(recorded.nodes)}
    for node in recorded.nodes:
        given = pytree.tree_map_only(Node, number.get, (node.args, node.kwargs))
        yield node, (node.op, node.target), repr(given), node.value


def _of_dtypes(built: nn.Module, dtypes: Mapping[str, torch.dtype]) -> nn.Module:
    """A copy with tensors of these dtypes."""
    names, tensors = zip(*named_tensors(built), strict=True)
    cast = [like(t, t.detach().to(dtypes[name])) for name, t in zip(names, tensors, strict=True)]
    return copy_with(built, tensors, cast)


def _reloaded(config: Any) -> Any:
    """``config`` as it will be read from disk, with the kernels that were chosen here."""
    read = type(config).from_dict(json.loads(config.to_json_string()))
    _choose_kernels(read, config)
    return read


def _choose_kernels(read: Any, config: Any) -> None:
    for name, value in vars(config).items():
        if name.endswith("_implementation_internal"):
            setattr(read, name, value)
        elif _is_config(value):
            _choose_kernels(getattr(read, name), value)


# ---- models without weights


class _EmptyOnMeta(TorchFunctionMode):
    """What is to be filled with weights lies on meta; buffers are computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.empty and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": "meta"}
        return func(*args, **kwargs)


def _build(kind: type, config: Any) -> Any:
    """The model of ``config`` with weights on meta and its buffers computed."""
    with torch.random.fork_rng(devices=[]), _EmptyOnMeta():
        return kind(copy.deepcopy(config)).eval()


def _shapes(kind: type, config: Any) -> Shapes | None:
    """Names and shapes of what the class builds from ``config``; None if it refuses."""
    try:
        with torch.device("meta"):
            built: nn.Module = kind(copy.deepcopy(config))
    except Exception:  # whatever a foreign class raises for a config that makes no sense
        return None
    return {name: tuple(tensor.shape) for name, tensor in named_tensors(built)}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Configs that are only tried need no warnings."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)


# ---- check and change models


def _refuse(function: str, model: Any) -> None:
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        hint = "; merge_and_unload() it first" if hasattr(model, "merge_and_unload") else ""
        raise TypeError(
            f"{function}: argument model: expected a transformers.PreTrainedModel, got "
            f"{type(model).__module__}.{type(model).__qualname__}{hint}"
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise TypeError(
            f"{function}: argument model: expected plain weights, got {type(model).__name__} with "
            f"adapters (PEFT); merge or delete them first"
        )
    if getattr(model.config, "quantization_config", None) is not None:
        raise TypeError(
            f"{function}: argument model: expected plain weights, got {type(model).__name__} "
            f"quantised ({model.config.quantization_config}); dequantize() it first"
        )


def _same_model(function: str, model: Any, whole: Any, plan: PruningPlan) -> None:
    present = {name: tuple(tensor.shape) for name, tensor in named_tensors(model)}
    if present not in (plan.shapes, plan.new_shapes()):
        raise ValueError(
            f"{function}: argument model: expected the model of the plan, got one in which "
            f"{_difference(plan.shapes, present)}"
        )
    said = {name: tuple(tensor.shape) for name, tensor in named_tensors(whole)}
    if said != plan.shapes:
        raise ValueError(
            f"{function}: argument model: expected the config of the model before the cut, got one "
            f"of a model in which {_difference(plan.shapes, said)}; a model that is not what its "
            f"config says (untied, resized, cut before) cannot be reloaded either"
        )
    if _ties(model) != _ties(whole):
        raise ValueError(
            f"{function}: argument model: expected tensors tied as its config says, got ties "
            f"{_ties(model)} instead of {_ties(whole)}"
        )


def _ties(model: nn.Module) -> dict[str, str]:
    """Other name -> first name of every tensor that has several."""
    first = {id(tensor): name for name, tensor in named_tensors(model)}
    state = model.state_dict(keep_vars=True)
    owners = {name: first.get(id(tensor), name) for name, tensor in state.items()}
    return {name: owner for name, owner in owners.items() if name != owner}


def _difference(expected: Shapes, got: Shapes) -> str:
    """The first name or shape that differs, as the end of a sentence."""
    name = next(n for n in {**expected, **got} if expected.get(n) != got.get(n))
    if name not in got:
        return f"{name} is missing"
    if name not in expected:
        return f"there is {name}, which should not be"
    return f"{name} has shape {got[name]} instead of {expected[name]}"


def _adopt(model: nn.Module, whole: nn.Module, smaller: nn.Module) -> None:
    """Give ``model`` the configs, and the numbers that depend on them, of the class itself."""
    for path, module in model.named_modules():
        before, after = vars(whole.get_submodule(path)), vars(smaller.get_submodule(path))
        for name, value in after.items():
            if _is_config(value) or (type(value) is int and value != before.get(name)):
                setattr(module, name, value)
