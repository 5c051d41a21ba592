"""Uniform ids and text that a model writes itself."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import infoslice
from infoslice.perturbation import (
    generated_tokens,
    noise,
    perturb,
    predicts_next_token,
    reads_tokens,
    resolve,
    uniform_tokens,
)


class Chain(nn.Module):
    """A Markov chain: the logits after a token are a row of a table."""

    def __init__(self, size: int = 6) -> None:
        super().__init__()
        self.table = nn.Embedding(size, size)
        torch.manual_seed(3)
        nn.init.normal_(self.table.weight, std=1.5)

    def forward(self, ids, attention_mask=None):
        return self.table(ids)


class Sums(nn.Module):
    """Logits that depend on all tokens before, in an object of their own."""

    def __init__(self, size: int = 11) -> None:
        super().__init__()
        self.table = nn.Embedding(size, 8)
        self.positions = nn.Embedding(64, 8)
        self.head = nn.Linear(8, size)

    def forward(self, input_ids, attention_mask=None):
        where = torch.arange(input_ids.shape[1])
        return {"logits": self.head((self.table(input_ids) + self.positions(where)).cumsum(1))}


class Encoder(nn.Module):
    """Reads both ways and has two kinds of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.kinds = nn.Embedding(9, 4), nn.Embedding(2, 4)
        self.head = nn.Linear(4, 9)

    def forward(self, input_ids, token_type_ids, attention_mask):
        x = (self.words(input_ids) + self.kinds(token_type_ids)) * attention_mask[..., None]
        return self.head(x + x.mean(1, keepdim=True))


EXAMPLE = torch.zeros(1, 5, dtype=torch.int64)
ENCODED = {
    "input_ids": torch.zeros(1, 5, dtype=torch.int32),
    "token_type_ids": torch.zeros(1, 5, dtype=torch.int64),
    "attention_mask": torch.tensor([[1.0, 1, 1, 0, 0]]),
}


def _llama():
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.4,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def test_uniform_ids_have_equal_shares_and_no_order():
    (ids,) = uniform_tokens(Chain(), EXAMPLE, 4000, length=7, excluded=[2]).args
    assert ids.shape == (4000, 7)
    shares = torch.bincount(ids.flatten(), minlength=6) / ids.numel()
    assert shares[2] == 0
    assert (shares[[0, 1, 3, 4, 5]] - 0.2).abs().max() < 5 * (0.2 * 0.8 / 28000) ** 0.5
    together = (ids[:, 0] == ids[:, 1]).float().mean()
    assert abs(together - 0.2) < 5 * (0.2 * 0.8 / 4000) ** 0.5


def test_only_what_the_largest_embedding_reads_becomes_ids():
    made = uniform_tokens(Encoder(), ENCODED, 50, length=8).kwargs
    assert made["input_ids"].dtype == torch.int32
    assert made["input_ids"].unique().tolist() == list(range(9))
    assert torch.equal(made["attention_mask"], torch.ones(50, 8))
    assert torch.equal(made["token_type_ids"], torch.zeros(50, 8, dtype=torch.int64))
    with torch.no_grad():
        assert Encoder()(**made).shape == (50, 8, 9)


def test_generated_text_follows_the_distribution_of_the_model():
    """Counts of transitions against the softmax of the table, by temperature."""
    model = Chain()
    for temperature in (1.0, 0.5):
        (ids,) = generated_tokens(
            model, EXAMPLE, 4000, length=9, temperature=temperature, batch_size=4000
        ).args
        counts = torch.zeros(6, 6, dtype=torch.float64)
        pairs = ids[:, :-1] * 6 + ids[:, 1:]
        counts.view(-1).index_add_(0, pairs.flatten(), torch.ones(pairs.numel()).double())
        rows = counts.sum(1, keepdim=True)
        expected = (model.table.weight.detach().double() / temperature).softmax(-1)
        error = (counts / rows - expected) / (expected * (1 - expected) / rows).sqrt()
        assert error.abs().max() < 5
        assert rows.min() > 500


def test_starts_are_spread_and_text_depends_on_the_seed_alone():
    model = Sums()
    (ids,) = generated_tokens(model, EXAMPLE, 22, length=12, batch_size=22).args
    assert torch.bincount(ids[:, 0], minlength=11).tolist() == [2] * 11
    (again,) = generated_tokens(model, EXAMPLE, 22, length=12, batch_size=5).args
    assert torch.equal(ids, again)
    (other,) = generated_tokens(model, EXAMPLE, 22, length=12, seed=1).args
    assert not torch.equal(ids, other)


def test_top_k_excluded_and_start():
    model = Sums().eval()
    (ids,) = generated_tokens(model, EXAMPLE, 3, length=10, top_k=1, start=4, excluded=[7]).args
    expected = torch.tensor([[4]])
    while expected.shape[1] < 10:
        logits = model(expected)["logits"][:, -1].detach()
        logits[:, 7] = -torch.inf
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], 1)
    assert torch.equal(ids, expected.expand(3, -1))
    starts = torch.arange(6).reshape(3, 2)
    (ids,) = generated_tokens(model, EXAMPLE, 3, length=4, start=starts).args
    assert torch.equal(ids[:, :2], starts)


@pytest.mark.parametrize("start", [None, 9])
def test_a_prompt_is_read_and_not_shown(start):
    model, prompt = Sums(), torch.tensor([3, 1, 4])
    options = {"length": 7, "prompt": prompt, "batch_size": 4}
    (ids,) = generated_tokens(model, EXAMPLE, 12, start=start, **options).args
    assert ids.shape == (12, 7)
    shown = prompt if start is None else torch.tensor([3, 1, 4, start])
    (whole,) = generated_tokens(model, EXAMPLE, 12, length=10, start=shown).args
    assert torch.equal(ids, whole[:, 3:])
    masked = {"input_ids": EXAMPLE, "attention_mask": torch.ones_like(EXAMPLE)}
    found = generated_tokens(model, masked, 12, start=start, **options)
    assert torch.equal(found.kwargs["input_ids"], ids)
    assert torch.equal(found.kwargs["attention_mask"], torch.ones_like(ids))


def test_the_cache_changes_the_cost_alone():
    model = _llama()
    example = {"input_ids": torch.ones(1, 6, dtype=torch.int64),
               "attention_mask": torch.tensor([[0, 1, 1, 1, 1, 1]])}  # fmt: skip
    widths: list[int] = []
    hook = model.model.layers[0].mlp.register_forward_pre_hook(
        lambda _, args: widths.append(args[0].shape[1])
    )
    cached = generated_tokens(model, example, 8, length=12, temperature=0.7).kwargs
    assert widths[-11:] == [1] * 11
    hook.remove()

    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, ids):
            return self.inner(ids).logits

    (plain,) = generated_tokens(Plain(), example["input_ids"], 8, length=12, temperature=0.7).args
    assert torch.equal(cached["input_ids"], plain)
    assert torch.equal(cached["attention_mask"], torch.ones(8, 12, dtype=torch.int64))


def test_nothing_of_the_model_changes():
    model = _llama().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    generated_tokens(model, EXAMPLE + 1, 4)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_which_models_read_and_predict_tokens():
    assert reads_tokens(Chain(), EXAMPLE)
    assert predicts_next_token(Chain(), EXAMPLE)
    assert predicts_next_token(Sums(), {"input_ids": EXAMPLE})
    assert reads_tokens(Encoder(), ENCODED)
    assert not predicts_next_token(Encoder(), ENCODED)  # what comes later changes what is before
    assert not reads_tokens(nn.Linear(3, 3), torch.zeros(1, 3))


def test_perturbations_by_name():
    ids = {"samples": 4, "seed": 5, "show_progress": False}
    assert resolve(Sums(), EXAMPLE, "auto") == "generated"
    assert resolve(Encoder(), ENCODED, "auto") == "tokens"
    assert resolve(nn.Sequential(nn.BatchNorm1d(2)), torch.zeros(1, 2), "auto") == "matched"
    assert resolve(nn.Linear(2, 2), torch.zeros(1, 2), "auto") == "gaussian"
    assert resolve(nn.Linear(2, 2), torch.zeros(1, 2), "matched") == "matched"
    model = Sums()
    for name, made in (
        ("auto", generated_tokens(model, EXAMPLE, 4, seed=5)),
        ("tokens", uniform_tokens(model, EXAMPLE, 4, seed=5)),
    ):
        assert torch.equal(perturb(model, EXAMPLE, name, **ids).args[0], made.args[0])
    floats = torch.zeros(1, 3)
    for name in ("gaussian", "uniform"):
        made = noise(floats, 4, kind=name, seed=5)
        assert torch.equal(perturb(nn.Linear(3, 3), floats, name, **ids).args[0], made.args[0])
    with pytest.raises(ValueError, match="got 'white'"):
        perturb(model, EXAMPLE, "white")


@pytest.mark.parametrize("perturbation", ["auto", "tokens"])
def test_a_language_model_is_pruned_without_data(perturbation):
    model, example = _llama(), torch.ones(1, 16, dtype=torch.int64)
    result = infoslice.prune(
        model, example, pruning_ratio=0.25, samples=16, allocation="uniform",
        perturbation=perturbation, show_progress=False,
    )  # fmt: skip
    assert result.report.perturbation == {"auto": "generated"}.get(perturbation, perturbation)
    assert result.model.model.layers[0].mlp.down_proj.in_features == 36


def test_positions_given_by_the_caller_stay():
    class Placed(Sums):
        def forward(self, input_ids, position_ids):
            return self.head((self.table(input_ids) + self.positions(position_ids)).cumsum(1))

    example = {"input_ids": torch.ones(1, 6, dtype=torch.int64),
               "position_ids": torch.arange(6)[None]}  # fmt: skip
    assert resolve(Placed(), example, "auto") == "generated"
    made = uniform_tokens(Placed(), example, 5).kwargs
    assert torch.equal(made["position_ids"], torch.arange(6).repeat(5, 1))
    with pytest.raises(ValueError, match="length: expected 6"):
        uniform_tokens(Placed(), example, 5, length=7)


class _Broken(Chain):
    def forward(self, ids):
        return super().forward(ids) * torch.nan


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: uniform_tokens(Chain(), EXAMPLE, 1), ValueError, "samples: expected at least 2"),
        (lambda: uniform_tokens(Chain(), EXAMPLE, 2, length=0), ValueError, "length: expected"),
        (lambda: uniform_tokens(Chain(), EXAMPLE, 2, excluded=[6]), ValueError, "got \\[6\\]"),
        (lambda: uniform_tokens(Chain(), EXAMPLE, 2, excluded=range(6)), ValueError, "got all"),
        (lambda: uniform_tokens(nn.Linear(2, 2), torch.ones(1, 2), 2), ValueError, "embedding"),
        (
            lambda: generated_tokens(Encoder(), ENCODED, 2),
            ValueError,
            "expected logits .* use uniform_tokens",
        ),
        (lambda: generated_tokens(Chain(), EXAMPLE, 2, temperature=0), ValueError, "temperature"),
        (lambda: generated_tokens(Chain(), EXAMPLE, 2, top_k=0), ValueError, "top_k"),
        (lambda: generated_tokens(Chain(), EXAMPLE, 2, start=6), ValueError, "start"),
        (lambda: generated_tokens(Chain(), EXAMPLE, 2, prompt=6), ValueError, "prompt"),
        (
            lambda: generated_tokens(Chain(), EXAMPLE, 2, prompt=torch.ones(3, 2)),
            ValueError,
            "prompt",
        ),
        (lambda: generated_tokens(_Broken(), EXAMPLE, 2), ValueError, "expected logits"),
    ],
)
def test_bad_arguments(call, error, text):
    with pytest.raises(error, match=text):
        call()
