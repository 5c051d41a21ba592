"""From scores to the channels that stay."""

import pytest
import torch

from infoslice.selection import select


def test_uniform_takes_the_same_share_of_every_group():
    scores = {"a": torch.tensor([3.0, 1, 2, 0]), "b": torch.arange(100.0)}
    keep = select(scores, 0.29, allocation="uniform")
    assert keep["a"].tolist() == [0, 1, 2]
    assert keep["b"].tolist() == list(range(29, 100))
    assert keep["a"].dtype == torch.int64


def test_global_takes_the_lowest_scores_wherever_they_are():
    scores = {"a": torch.tensor([5.0, 6, 7, 8]), "b": torch.tensor([1.0, 9, 2, 3])}
    keep = select(scores, 0.25)
    assert keep["a"].tolist() == [0, 1, 2, 3]
    assert keep["b"].tolist() == [1, 3]
    capped = select(scores, 0.25, max_pruning_ratio=0.25)
    assert capped["b"].tolist() == [1, 2, 3]
    assert capped["a"].tolist() == [1, 2, 3]


def test_at_least_one_channel_stays_and_the_total_is_met():
    scores = {"a": torch.zeros(3), "b": torch.ones(50)}
    for ratio in (0.0, 0.3, 0.5, 0.9, 0.95):
        keep = select(scores, ratio)
        assert len(keep["a"]) >= 1
        assert sum(map(len, keep.values())) == 53 - int(ratio * 53 + 1e-9)
        for kept in keep.values():
            assert torch.equal(kept, kept.unique())


def test_rounding_never_enlarges_a_group():
    scores = {"a": torch.rand(13), "b": torch.rand(64)}
    keep = select(scores, 0.5, allocation="uniform", round_to=8)
    assert len(keep["a"]) == 8
    assert len(keep["b"]) == 32
    assert len(select({"a": torch.rand(13)}, 0.1, round_to=8)["a"]) == 13


def test_equal_scores_keep_the_first_channels():
    assert select({"a": torch.zeros(4)}, 0.5)["a"].tolist() == [0, 1]


@pytest.mark.parametrize("ratio", [-0.1, 1.0, 1.5, float("nan")])
def test_a_ratio_outside_the_range_is_refused(ratio):
    with pytest.raises(ValueError, match=r"pruning_ratio: expected a number in \[0, 1\)"):
        select({"a": torch.zeros(4)}, ratio)


@pytest.mark.parametrize(
    ("scores", "options", "text"),
    [
        (torch.tensor([1.0, float("nan")]), {}, "NaN"),
        (torch.zeros(2, 2), {}, r"\(2, 2\)"),
        (torch.zeros(2), {"allocation": "local"}, "'local'"),
        (torch.zeros(2), {"round_to": 0}, "round_to"),
        (torch.zeros(2), {"max_pruning_ratio": 1.0}, "max_pruning_ratio"),
    ],
)
def test_bad_arguments(scores, options, text):
    with pytest.raises(ValueError, match=text):
        select({"a": scores}, 0.5, **options)
