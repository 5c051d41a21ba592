"""Index maps and the algebra of axes, against writing every index out."""

from __future__ import annotations

import pytest
import torch

from infoslice.graph import IndexMap
from infoslice.graph.dims import Atom, Prod, Sum, atoms, index_maps, pin, resolve, size, unify


@pytest.mark.parametrize(
    ("index_map", "expected"),
    [
        (IndexMap(3), [0, 2]),
        (IndexMap(3, run=2), [0, 1, 4, 5]),
        (IndexMap(3, offset=5), [5, 7]),
        (IndexMap(3, repeat=2, period=3), [0, 2, 3, 5]),
        (IndexMap(3, run=2, offset=1, repeat=2, period=10), [1, 2, 5, 6, 11, 12, 15, 16]),
    ],
)
def test_index_map(index_map, expected):
    found = index_map.indices([0, 2])
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert len(index_map.indices()) == 3 * index_map.run * index_map.repeat
    assert index_map.indices([]).tolist() == []
    assert IndexMap(**index_map.to_dict()) == index_map


@pytest.mark.parametrize("channel", [-1, 3])
def test_index_map_refuses_other_channels(channel):
    with pytest.raises(ValueError, match=r"keep: expected channels in \[0, 3\)"):
        IndexMap(3).indices([channel])


def positions(dim):
    """Atom -> positions, by writing every index of the axis out."""
    dim = resolve(dim)
    if isinstance(dim, Atom):
        return [{dim: i} for i in range(dim.size)]
    if isinstance(dim, Sum):
        return [entry for part in dim.parts for entry in positions(part)]
    table = [{}]
    for factor in dim.factors:
        table = [{**outer, **inner} for outer in table for inner in positions(factor)]
    return table


def test_index_maps_equal_enumeration():
    a, b, c, d = Atom(2), Atom(3), Atom(4), Atom(5)
    dims = [
        a,
        Sum((a, b)),
        Prod((a, b, c)),
        Sum((Prod((a, c)), b, Prod((d, c)))),
        Prod((c, Sum((a, b)))),
        Prod((Sum((a, b)), c)),
        Sum((a, Prod((c, Sum((b, a)), Atom(3))), d)),
        Prod((c, Prod((d, Sum((a, b)))))),
    ]  # fmt: skip
    for dim in dims:
        table = positions(dim)
        assert size(dim) == len(table)
        found: dict[tuple[Atom, int], set[int]] = {}
        for atom, index_map in index_maps(dim):
            for channel in range(atom.size):
                found.setdefault((atom, channel), set()).update(
                    index_map.indices([channel]).tolist()
                )
        expected: dict[tuple[Atom, int], set[int]] = {}
        for position, entry in enumerate(table):
            for atom, channel in entry.items():
                expected.setdefault((atom, channel), set()).add(position)
        assert found == expected


def test_two_separate_outer_loops_have_no_map():
    a, b, c = Atom(2), Atom(3), Atom(4)
    assert index_maps(Prod((a, Sum((b, Prod((c, Sum((Atom(2), Atom(3)))))))))) is None


def test_unify_binds_atoms_to_structure():
    a, b, c, whole = Atom(3), Atom(5), Atom(8), Atom(8)
    unify(c, Sum((a, b)), "")
    unify(whole, c, "")
    assert list(atoms(whole)) == [a, b]
    d, e, product = Atom(4), Atom(6), Atom(24)
    unify(product, Prod((d, e)), "")
    assert [m.run for _, m in index_maps(product)] == [6, 1]


def test_unify_refines_sums_and_pins_what_does_not_align():
    a, b, c, d = Atom(5), Atom(3), Atom(4), Atom(4)
    unify(Sum((a, b)), Sum((c, d)), "no")
    assert [atom.size for atom in atoms(Sum((a, b)))] == [4, 1, 3]
    assert list(atoms(Sum((a, b)))) == list(atoms(Sum((c, d))))
    e, f, g, h = Atom(4), Atom(6), Atom(6), Atom(4)
    unify(Prod((e, f)), Prod((g, h)), "no")
    assert {atom.reason for atom in atoms(Prod((e, f, g, h)))} == {"no"}
    i, j = Atom(2), Atom(3)
    unify(Sum((i, i, j)), Sum((j, i, i)), "no")  # i would be laid over parts of j and of itself
    assert all(atom.size == 1 or atom.reason == "no" for atom in atoms(Sum((i, j))))


def test_pins_follow_bindings():
    a, b = Atom(6), Atom(6, "first")
    unify(a, b, "")
    pin(a, "second")
    assert [atom.reason for atom in atoms(a)] == ["first"]
    whole = Atom(6, "kept")
    unify(whole, Sum((Atom(2), Atom(4))), "")
    assert [atom.reason for atom in atoms(whole)] == ["kept", "kept"]
