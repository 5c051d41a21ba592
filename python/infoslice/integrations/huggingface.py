"""Hugging Face models: the config follows the cut, so that ``save_pretrained`` simply works.

The new config is proposed (config_search.py) and proved: what the class builds from it, once it is
read back from its JSON, has exactly the names, ties and shapes of the cut model, the same buffers
and numbers, and calls the same operators.
"""

from __future__ import annotations

import contextlib
import copy
import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from infoslice.graph.capture import Capture, capture
from infoslice.graph.cuts import set_sizes, size_cuts
from infoslice.graph.recording import Node, call_site
from infoslice.graph.shell import TensorSpec, TraceError, build_shell, named_tensors
from infoslice.integrations.config_search import (
    Shapes,
    is_config,
    search,
    starts,
    with_heads,
    wrong_axes,
)
from infoslice.replacement import copy_with, like
from infoslice.surgery import PruningPlan, Surgery

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from transformers import PretrainedConfig, PreTrainedModel

__all__ = ["apply", "plan_config", "update_config"]


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
    config: PretrainedConfig = _solve("plan_config", model, plan)[1].config
    return config


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


def _solve(function: str, model: Any, plan: PruningPlan) -> tuple[Any, Any]:
    """The class built, without weights, from the config as it is and as it has to be."""
    _refuse(function, model)
    with _quiet():
        whole = _build(type(model), model.config)
        _same_model(function, model, whole, plan)
        target = plan.new_shapes()
        reasons = []
        for start in starts(type(model), model.config, plan.shapes):
            found = search(type(model), start, target)
            if found.shapes != target:
                reasons.append(_unsaid(plan, found.shapes))
                continue
            for config in with_heads(type(model), model.config, found.config):
                try:
                    smaller = _build(type(model), _reloaded(config))
                    _prove(model, whole, smaller, plan)
                except Exception as error:  # foreign classes refuse configs as they like
                    reasons.append(" ".join(str(error).split()))
                else:
                    return whole, smaller
    raise ValueError(
        f"{function}: argument plan: expected widths that {type(model.config).__name__} can say, "
        f"got a cut after which {reasons[0]}; or write the model with infoslice.save_pruned, which "
        f"needs no config"
    )


def _unsaid(plan: PruningPlan, shapes: Shapes) -> str:
    """The first tensor that no config says, which layers disagree on it, and the way round."""
    target = plan.new_shapes()
    wrong = wrong_axes(shapes, target)
    if not wrong:
        return f"in the model of the nearest config {_difference(target, shapes)}"
    places = {name: i for i, name in enumerate(target)}
    name, axis = min(wrong, key=lambda place: (places[place[0]], place[1]))
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
    if not cut:
        return f"{text}: the plan leaves it as it is, but its width has no config entry of its own"
    return f"{text}; leave whole {' and '.join(cut)}"


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
        expected = capture(cut, inputs, plan.forward_fn)
        got = capture(build_shell(_of_dtypes(smaller, dtypes)), inputs, plan.forward_fn)
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
    """``config`` as it will be read from disk, with what is said by whoever reads it."""
    read = type(config).from_dict(json.loads(config.to_json_string()))
    _read_alike(read, config)
    return read


def _read_alike(read: Any, config: Any) -> None:
    """The kernels chosen and the place read from; neither is written to disk."""
    for name, value in vars(config).items():
        if name.endswith("_implementation_internal") or name == "_name_or_path":
            setattr(read, name, value)
        elif is_config(value):
            _read_alike(getattr(read, name), value)


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Configs that are only tried need no warnings."""
    from logging import CRITICAL

    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
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
    changed = _changed_by_hand(model, whole)
    if changed:
        raise ValueError(
            f"{function}: argument model: expected what its config says, got one in which "
            f"{changed}: a reloaded model would not have it; say it in the config, or write the "
            f"model with infoslice.save_pruned"
        )


def _changed_by_hand(model: nn.Module, whole: nn.Module) -> str:
    """The first module, number or unsaved buffer that differs, for reasons other than a cut."""
    for path, module in whole.named_modules():
        present = model.get_submodule(path)
        if type(present) is not type(module):
            return f"{path} is a {type(present).__name__} instead of a {type(module).__name__}"
        for name, value in vars(module).items():
            is_setting = type(value) in (float, str) and not name.startswith("_")
            if is_setting and vars(present).get(name) != value:
                return f"{path}.{name} is {vars(present).get(name)} instead of {value}"
    saved, here = whole.state_dict(), dict(model.named_buffers())
    for name, buffer in whole.named_buffers():
        given = here[name]
        if name in saved or given.shape != buffer.shape or given.is_meta or buffer.is_meta:
            continue
        # A model that was once of half precision keeps its tables rounded.
        if not torch.allclose(given.double().cpu(), buffer.double().cpu(), rtol=1e-2):
            return f"the buffer {name}, which is not saved, has other values"
    return ""


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
            if is_config(value) or (type(value) is int and value != before.get(name)):
                setattr(module, name, value)
