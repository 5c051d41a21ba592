"""Walks a captured ATen graph once and hands every node to the rule of its operator.

A rule is a function ``(walk, node) -> value`` under ``@rule("aten::name", ...)``. It says which
axes of the results are which axes of the arguments (``Walk.unify``), which axes nobody may cut
(``Walk.pin``), which axes of weights make or take channels (``Walk.use``) and which sizes modules
keep as attributes (``Walk.size_attribute``). An operator without a rule pins all it touches.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from infoslice.graph.dims import Atom, Dim, atoms, pin, size, unify
from infoslice.graph.recording import Node, Shape, call_site, operator_name, tensor_shapes

__all__ = [
    "MULTIPLIER", "SPATIAL", "Result", "Role", "Rule", "SizeUse", "Use", "Value", "Walk",
    "fresh", "rule", "rules",
]  # fmt: skip

Role = Literal["out", "in", "follow"]

# Reasons of axes that were never channels; such atoms form no group and are not reported.
SPATIAL = "spatial or kernel axis"
MULTIPLIER = "channel multiplier of a depthwise convolution"


# Attributes under which modules keep numbers of heads or groups, and widths.
HEADS = """
num_heads n_heads num_attention_heads n_head nhead heads num_key_value_heads num_kv_heads n_groups
""".split()
WIDTHS = """
all_head_size attn_dim inner_dim split_size hidden_size hidden_dim embed_dim intermediate_size
val_dim val_attn_dim kdim vdim dim dim_out dh nh_kd dim_head_v dim_head
intermediate_dim input_size kv_lora_rank v_head_dim time_step_rank conv_dim group_size head_dim
""".split()
# ... of the pieces that a tensor is split into, and in a tuple for all of them.
PIECES = """
width in_channels in_chs expand_chs dim_conv dim_untouched dim_conv3 pdim qk_dim key_dim d
dim_out_qk dim_out_v dim_qk dim_v num_1x1_c
""".split()
SHAPES = ["shape", "bias_shape"]  # of a tensor, a tuple
SECTIONS = ["split_indexes", "channel_splits", "split_sizes", "split_dims", "sections"]
# ... and the configuration that the modules of a model share; a module then gets one of its own.
CONFIG = ["config.num_attention_heads", "config.num_key_value_heads"]
EXPERTS = ["num_experts", "num_local_experts", "n_routed_experts"]
REPEATS = ["num_key_value_groups", "n_rep"]  # heads that share one head of keys and values


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor in the graph: one dimension per axis.

    ``tensor`` names the parameter or buffer this is, ``axes`` the axis of it that each axis is
    (None for an axis of length 1 that it lacks). Both survive transposition, and the choice of
    rows. None for everything that was computed. ``sources`` are the parameters and buffers that it
    was computed from, None if the input of the model takes part. ``points``: of a tensor of
    positions, the axis they are positions in, where that is known.
    """

    dims: tuple[Dim, ...]
    tensor: str | None = None
    axes: tuple[int | None, ...] = ()
    sources: tuple[str, ...] | None = None
    points: Dim | None = None


@dataclass(frozen=True)
class Use:
    """A layer writes (out), reads (in) or carries along (follow) channels on a tensor's axis."""

    tensor: str
    axis: int
    role: Role
    module: str


@dataclass(frozen=True, eq=False)
class SizeUse:
    """A module may keep the length of ``dim`` in an attribute (at ``position`` of a tuple).

    ``guessed``: by the name of the attribute; a smaller copy proves it, or all is left whole.
    """

    module: str
    attribute: str
    position: int | None
    dim: Dim
    guessed: bool = False


Result = Value | tuple[Value | None, ...] | None
Rule = Callable[["Walk", Node], Result]
rules: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operators by schema name; overloads share it, ``name_`` goes to name."""

    def register(function: Rule) -> Rule:
        for name in names:
            rules[name] = function
        return function

    return register


@dataclass
class Walk:
    """State of one walk over a graph."""

    module_of: Callable[[str, str], str]
    weights: dict[str, Value] = field(default_factory=dict)
    values: dict[Node, Result] = field(default_factory=dict)
    uses: list[Use] = field(default_factory=list)
    sizes: list[SizeUse] = field(default_factory=list)
    layers: dict[str, None] = field(default_factory=dict)
    renormalised: list[tuple[str, Dim]] = field(default_factory=list)
    starts: dict[Node, Dim] = field(default_factory=dict)  # what a slice leaves out before it
    first_read: dict[str, Dim] = field(default_factory=dict)  # by the first layer of a module
    # Pairs of axes that code may keep of one length; they become one where a smaller copy asks.
    ties: list[tuple[Dim, Dim]] = field(default_factory=list)
    # What each attribute of a module (by its identity) is taken for.
    guesses: dict[tuple[int, str, int | None], SizeUse] = field(default_factory=dict)
    # What can only be decided when all axes are known.
    at_end: list[Callable[[], None]] = field(default_factory=list)
    steps: list[tuple[Dim, int]] = field(default_factory=list)  # lengths that kernels want
    baked: bool = False  # numbers reach an operator: the code may spell out or use channel counts

    # ---- running

    def run(self, nodes: Iterable[Node]) -> None:
        """Apply the rules to all ``call_function`` nodes in order."""
        for node in nodes:
            if node.op == "call_function":
                for value in self.inputs(node):
                    if value.tensor is not None:
                        self.layers[self.module_of(value.tensor, node.module)] = None
                self.values[node] = self._traced_back(node, self._apply(node))
            elif node.op == "output":
                for value in self.inputs(node):
                    self.pin(value.dims, "model output")
        for decide in self.at_end:
            decide()

    def _traced_back(self, node: Node, result: Result) -> Result:
        """``result`` with what it was computed from, if that is weights and constants alone."""
        sources: dict[str, None] = {}
        for value in self.inputs(node):
            if value.sources is None:
                return result
            sources.update(dict.fromkeys(value.sources))
        if isinstance(result, tuple):
            return tuple(v and replace(v, sources=tuple(sources)) for v in result)
        return result and replace(result, sources=tuple(sources))

    def _apply(self, node: Node) -> Result:
        name = operator_name(node)
        if name == "getitem":
            source = self.values.get(node.args[0]) if isinstance(node.args[0], Node) else None
            index = node.args[1]
            return source[index] if isinstance(source, tuple) and isinstance(index, int) else None
        function = rules.get(name) or rules.get(name.rstrip("_"))
        if function is None:
            return self.unknown(node)
        try:
            result = function(self, node)
        except (AssertionError, AttributeError, LookupError, TypeError, ValueError) as error:
            # Arguments that the rule does not foresee: whole, never guessed.
            return self.unknown(node, f"{self.where(node)} is not understood: {error}")
        made = [tuple(map(size, value.dims)) for value in _flat(result) if value is not None]
        if made != tensor_shapes(node.value):
            # A form of the operator that the rule does not foresee: whole, never guessed.
            reason = f"{self.where(node)} has a form that is not understood"
            for value in _flat(result):
                if value is not None:
                    self.pin(value.dims, reason)
            return self.unknown(node, reason)
        return result

    # ---- what rules read

    def inputs(self, node: Node) -> list[Value]:
        """Every tensor argument, nested ones included."""
        found: list[Value] = []
        for argument in node.inputs:
            found.extend(value for value in _flat(self.values.get(argument)) if value is not None)
        return found

    def value(self, argument: Any) -> Value | None:
        """The tensor a node argument stands for, None for None and numbers."""
        result = self.values.get(argument) if isinstance(argument, Node) else None
        return result if isinstance(result, Value) else None

    def tensor(self, argument: Any) -> Value:
        """The tensor a node argument stands for; the schema guarantees that it is one."""
        value = self.value(argument)
        if value is None:
            raise AssertionError(f"expected a tensor argument, got {argument!r}")
        return value

    def where(self, node: Node) -> str:
        """Operator and module path, for reasons."""
        return call_site(node)

    # ---- what rules say

    def unify(self, node: Node, first: Dim, second: Dim) -> None:
        """The two axes are the same channels."""
        unify(first, second, f"{self.where(node)} joins axes of different structure")

    def pin(self, dims: Sequence[Dim], reason: str) -> None:
        """Nothing may be removed from these axes."""
        for dim in dims:
            pin(dim, reason)

    def use(self, node: Node, value: Value | None, axis: int, role: Role) -> None:
        """A layer writes, reads or carries channels along ``axis`` of a weight.

        Of a weight that is computed from others, their axes of the same channels are meant.
        """
        if value is None:
            return
        if value.tensor is not None:
            of_tensor = value.axes[axis]
            if of_tensor is not None:
                module = self.module_of(value.tensor, node.module)
                self.uses.append(Use(value.tensor, of_tensor, role, module))
            return
        wanted = set(atoms(value.dims[axis]))
        for name in value.sources or ():
            module = self.module_of(name, node.module)
            for i, dim in enumerate(self.weights[name].dims):
                if not wanted.isdisjoint(atoms(dim)):
                    self.uses.append(Use(name, i, role, module))

    def size_attribute(
        self, node: Node, attribute: str, dim: Dim, position: int | None = None
    ) -> None:
        """The module of ``node`` may keep the length of ``dim`` under ``attribute``."""
        self.sizes.append(SizeUse(node.module, attribute, position, dim))

    def reads(self, node: Node, dim: Dim) -> None:
        """A layer called by ``node`` reads ``dim``."""
        for module in (node.module, node.module.rpartition(".")[0]):
            self.first_read.setdefault(module, dim)

    def tie(self, asked: Container[Atom]) -> bool:
        """Unify the pairs of which both axes hold an atom in ``asked``; True if there are any."""
        found = False
        for first, second in self.ties:
            if all(any(a in asked for a in atoms(dim)) for dim in (first, second)):
                unify(first, second, "attention computes one width from another")
                found = True
        return found

    def guess_sizes(
        self,
        node: Node,
        attributes: Sequence[str],
        dim: Dim,
        position: int | None = None,
        module: str | None = None,
    ) -> None:
        """Names under which the module may keep ``dim``; a smaller copy proves it."""
        module = node.module if module is None else module
        for attribute in attributes:
            self.sizes.append(SizeUse(module, attribute, position, dim, guessed=True))

    def unknown(self, node: Node, reason: str | None = None) -> Result:
        """Pin all axes of all tensors that go in and come out."""
        reason = reason or f"{self.where(node)} is not understood"
        for value in self.inputs(node):
            self.pin(value.dims, reason)
        return fresh(node, reason)


def fresh(node: Node, reason: str | None = None) -> Result:
    """New dimensions for the result of ``node``, shaped as it is."""
    val = node.value
    if isinstance(val, Shape):
        return Value(tuple(Atom(n, reason) for n in val.shape))
    if isinstance(val, (tuple, list)):
        return tuple(
            Value(tuple(Atom(n, reason) for n in item.shape)) if isinstance(item, Shape) else None
            for item in val
        )
    return None


def _flat(result: Result) -> tuple[Value | None, ...]:
    return result if isinstance(result, tuple) else (result,)
