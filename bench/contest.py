"""What a benchmark is made of: one task, done in several ways on the same data."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

OURS = "infoslice"
Run = Callable[[], Any]


@dataclass(frozen=True)
class Part:
    """An entrant with something of its own.

    Too slow for the whole task, it does a part and counts ``times`` over. With ``expected`` None it
    is a yardstick that does another thing, like a bare copy, and is not checked. ``before``
    prepares each of its runs, outside the time measured. ``bound`` is its own, where it is known to
    be less exact.
    """

    run: Run
    times: float
    expected: torch.Tensor | None
    before: Run | None = None
    bound: float | None = None


def first(result: Any) -> torch.Tensor:
    return torch.as_tensor(result[0] if isinstance(result, tuple | list) else result)


@dataclass(frozen=True)
class Contest:
    """The entrants by name, and what they must agree on.

    ``read`` makes a tensor of a result, outside the time measured. ``bound`` is the largest error
    allowed, relative to the largest entry expected.
    """

    entrants: Mapping[str, Run | Part]
    expected: torch.Tensor
    bound: float
    read: Callable[[Any], torch.Tensor] = first

    def run(self, name: str) -> Run:
        entrant = self.entrants[name]
        return entrant.run if isinstance(entrant, Part) else entrant

    def before(self, name: str) -> Run | None:
        entrant = self.entrants[name]
        return entrant.before if isinstance(entrant, Part) else None

    def times(self, name: str) -> float:
        entrant = self.entrants[name]
        return entrant.times if isinstance(entrant, Part) else 1.0

    def error(self, name: str) -> float:
        """Runs an entrant once and compares; an error above the bound raises AssertionError."""
        entrant = self.entrants[name]
        expected = entrant.expected if isinstance(entrant, Part) else self.expected
        if expected is None:
            return 0.0
        prepare = self.before(name)
        if prepare:
            prepare()
        result = self.read(self.run(name)()).detach().double()
        assert result.shape == expected.shape, (name, result.shape, expected.shape)
        scale = expected.abs().max().item() or 1.0
        found: float = (result - expected.double()).abs().max().item() / scale
        bound = entrant.bound if isinstance(entrant, Part) and entrant.bound else self.bound
        assert found <= bound, f"{name}: error {found:.2g} > {bound:.2g}"
        return found


@dataclass(frozen=True)
class Case:
    """A task: its title, who takes part, and how to make the data.

    ``goals`` says how many times our time a peer should take at least. ``flops`` and ``bytes`` are
    what the task needs, not what an entrant spends: with the machine's rates for arithmetic of
    ``dtype`` and for copying they give the floor, below which nobody gets. ``floor`` names an
    entrant whose time is the floor where it is longer. ``within``: seconds that ours should take at
    most.
    """

    title: str
    names: Sequence[str]
    make: Callable[[], Contest]
    goals: Mapping[str, float] = field(default_factory=dict)
    flops: float = 0.0
    bytes: float = 0.0
    dtype: torch.dtype = torch.float32
    floor: str | None = None
    within: float | None = None


def tests_of(cases: Sequence[Case]) -> Callable[..., None]:
    """One benchmark for each entrant of each case (see the fixture ``race``)."""

    @pytest.mark.parametrize(
        ("case", "name"),
        [pytest.param(c, name, id=f"{c.title}: {name}") for c in cases for name in c.names],
    )
    def test(race: Callable[[Case, str], None], case: Case, name: str) -> None:
        race(case, name)

    return test
