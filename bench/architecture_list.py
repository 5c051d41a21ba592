"""Architectures of torchvision, timm and transformers, small and with random weights.

``ARCHITECTURES``: name -> a function that returns the model in eval mode and its keyword or
positional example inputs. Nothing is downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["ARCHITECTURES"]

# name:side of the input image
_TORCHVISION = """
alexnet:64 convnext_tiny:64 densenet121:64 densenet201:64 efficientnet_b0:64 efficientnet_v2_s:64
googlenet:96 inception_v3:128 maxvit_t:224 mnasnet0_5:64 mobilenet_v2:64 mobilenet_v3_small:64
regnet_x_400mf:64 regnet_y_400mf:64 resnet18:64 resnet50:64 resnext50_32x4d:64
shufflenet_v2_x0_5:64 squeezenet1_1:64 swin_t:64 swin_v2_t:64 vgg11_bn:64 vit_b_16:224
wide_resnet50_2:64
"""
_TIMM = """
beit_base_patch16_224:224 cait_xxs24_224:224 caformer_s18:64 coat_lite_tiny:224 coatnet_0_rw_224:224
convmixer_768_32:64 convnextv2_atto:64 crossvit_9_240:240 cspresnet50:64 davit_tiny:224
deit_tiny_distilled_patch16_224:224 dla34:64 dpn48b:64 edgenext_xx_small:128 efficientformer_l1:224
ese_vovnet19b_slim:64 eva02_tiny_patch14_224:224 fastvit_t8:128 focalnet_tiny_srf:64 ghostnet_050:64
gmlp_ti16_224:224 hiera_tiny_224:224 hrnet_w18_small:64 lcnet_050:64 levit_128s:224
mixer_s32_224:224 mobilenetv4_conv_small:64 mobilevit_xxs:128 mobilevitv2_050:128 nest_tiny:224
nfnet_l0:64 poolformer_s12:64 pvt_v2_b0:224 repvgg_a0:64 repvit_m0_9:64 res2net50_26w_4s:64
resmlp_12_224:224 resnest14d:64 resnetv2_50:64 rexnet_100:64 skresnet18:64
swin_tiny_patch4_window7_224:224 swinv2_tiny_window8_256:256 tinynet_e:64 twins_svt_small:224
visformer_tiny:224 vit_tiny_patch16_224:224 volo_d1_224:224 xcit_nano_12_p16_224:224 xception41:96
"""

_SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
    "num_attention_heads": 4, "max_position_embeddings": 64,
}  # fmt: skip
_TOKENS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GROUPED = {**_SMALL, "num_key_value_heads": 2}
_HEADS8 = {**_SMALL, "num_attention_heads": 8, "head_dim": 8}
_IMAGE = {
    "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
_GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}
_SEQ2SEQ = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, **_TOKENS,
}  # fmt: skip
_T5 = {
    "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 0,
}  # fmt: skip

# name: (model class, config class, config, kind of input)
_TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", _GROUPED, "ids"),
    "llama-mha": ("LlamaForCausalLM", "LlamaConfig", _SMALL, "ids"),
    "llama-mqa": ("LlamaForCausalLM", "LlamaConfig", {**_SMALL, "num_key_value_heads": 1}, "ids"),
    "llama-8-to-2": (
        "LlamaForCausalLM", "LlamaConfig", {**_HEADS8, "num_key_value_heads": 2}, "ids",
    ),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", _GROUPED, "ids"),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {**_GROUPED, "head_dim": 8}, "ids"),
    "mistral": ("MistralForCausalLM", "MistralConfig", _GROUPED, "ids"),
    "mixtral": (
        "MixtralForCausalLM", "MixtralConfig",
        {**_GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2}, "ids",
    ),
    "qwen3-moe": (
        "Qwen3MoeForCausalLM", "Qwen3MoeConfig",
        {**_GROUPED, "head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2,
         "moe_intermediate_size": 24, "decoder_sparse_step": 1}, "ids",
    ),
    "gemma2": ("Gemma2ForCausalLM", "Gemma2Config", {**_GROUPED, "head_dim": 8}, "ids"),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_GROUPED, "head_dim": 8}, "ids"),
    "phi": ("PhiForCausalLM", "PhiConfig", _GROUPED, "ids"),
    "phi3": ("Phi3ForCausalLM", "Phi3Config", {**_GROUPED, **_TOKENS}, "ids"),
    "olmo2": ("Olmo2ForCausalLM", "Olmo2Config", _GROUPED, "ids"),
    "granite": ("GraniteForCausalLM", "GraniteConfig", _GROUPED, "ids"),
    "stablelm": ("StableLmForCausalLM", "StableLmConfig", _GROUPED, "ids"),
    "cohere": ("CohereForCausalLM", "CohereConfig", {**_GROUPED, **_TOKENS}, "ids"),
    "starcoder2": ("Starcoder2ForCausalLM", "Starcoder2Config", _GROUPED, "ids"),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {**_GPT, **_TOKENS}, "ids"),
    "gpt_neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _SMALL, "ids"),
    "gptj": ("GPTJForCausalLM", "GPTJConfig", {**_GPT, "rotary_dim": 4, **_TOKENS}, "ids"),
    "opt": (
        "OPTForCausalLM", "OPTConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 48,
         "num_attention_heads": 4, "word_embed_proj_dim": 32}, "ids",
    ),
    "falcon": (
        "FalconForCausalLM", "FalconConfig",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
         "multi_query": True}, "ids",
    ),
    "bloom": (
        "BloomForCausalLM", "BloomConfig",
        {"vocab_size": 64, "hidden_size": 32, "n_layer": 2, "n_head": 4}, "ids",
    ),
    "mpt": (
        "MptForCausalLM", "MptConfig",
        {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}, "ids",
    ),
    "bert": ("BertModel", "BertConfig", _SMALL, "ids"),
    "roberta": ("RobertaModel", "RobertaConfig", _SMALL, "ids"),
    "distilbert": (
        "DistilBertModel", "DistilBertConfig",
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}, "ids",
    ),
    "albert": ("AlbertModel", "AlbertConfig", {**_SMALL, "embedding_size": 16}, "ids"),
    "electra": ("ElectraModel", "ElectraConfig", {**_SMALL, "embedding_size": 16}, "ids"),
    "deberta_v2": (
        "DebertaV2Model", "DebertaV2Config",
        {**_SMALL, "relative_attention": True, "pos_att_type": ["p2c", "c2p"],
         "position_buckets": 8}, "ids",
    ),
    "t5": ("T5ForConditionalGeneration", "T5Config", _T5, "pairs"),
    "t5-gated": (
        "T5ForConditionalGeneration", "T5Config", {**_T5, "feed_forward_proj": "gated-gelu"},
        "pairs",
    ),
    "bart": (
        "BartForConditionalGeneration", "BartConfig", {**_SEQ2SEQ, "max_position_embeddings": 64},
        "pairs",
    ),
    "whisper": (
        "WhisperForConditionalGeneration", "WhisperConfig",
        {**_SEQ2SEQ, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16,
         "decoder_start_token_id": 1}, "sound",
    ),
    "vit": ("ViTModel", "ViTConfig", _IMAGE, "image"),
    "swin": (
        "SwinModel", "SwinConfig",
        {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2],
         "num_heads": [2, 4], "window_size": 4}, "image",
    ),
    "dinov2": (
        "Dinov2Model", "Dinov2Config",
        {k: v for k, v in _IMAGE.items() if k != "intermediate_size"}, "image",
    ),
    "clip": (
        "CLIPModel", "CLIPConfig",
        {"text_config": {**_SMALL, **_TOKENS}, "vision_config": _IMAGE, "projection_dim": 16},
        "both",
    ),
    "siglip": (
        "SiglipModel", "SiglipConfig",
        {"text_config": {**_SMALL, **_TOKENS}, "vision_config": _IMAGE}, "both",
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM", "DeepseekV3Config",
        {**_SMALL, "num_key_value_heads": 4, "moe_intermediate_size": 24, "n_routed_experts": 4,
         "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2,
         "first_k_dense_replace": 1, "q_lora_rank": 12, "kv_lora_rank": 10, "qk_rope_head_dim": 4,
         "qk_nope_head_dim": 6, "v_head_dim": 8}, "ids",
    ),
    "mamba2": (
        "Mamba2ForCausalLM", "Mamba2Config",
        {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
         "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4}, "ids",
    ),
}  # fmt: skip


@functools.cache
def _torchvision_module() -> Any:
    """Built for CUDA it asks for two operators that it cannot load on a machine without."""
    try:
        return importlib.import_module("torchvision")
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float threshold) -> Tensor")
        _LIBRARIES.append(library)
        return importlib.import_module("torchvision")


_LIBRARIES: list[torch.library.Library] = []  # operators live as long as the object


def _torchvision(name: str, side: int) -> tuple[nn.Module, dict[str, Any]]:
    model = _torchvision_module().models.get_model(name, weights=None)
    return model, {"": torch.randn(2, 3, side, side)}


def _timm(name: str, side: int) -> tuple[nn.Module, dict[str, Any]]:
    _torchvision_module()  # timm imports it
    import timm

    return timm.create_model(name), {"": torch.randn(2, 3, side, side)}


def _transformers(
    model: str, config: str, settings: dict[str, Any], kind: str
) -> tuple[nn.Module, dict[str, Any]]:
    with contextlib.suppress(ImportError):
        _torchvision_module()  # transformers imports it where it is installed
    import transformers

    made = getattr(transformers, model)(getattr(transformers, config)(**settings))
    if hasattr(made.config, "num_experts_per_tok"):
        made.set_experts_implementation("batched_mm")  # the others depend on tensor values
    ids = torch.randint(3, 50, (2, 7))
    image = torch.randn(2, 3, 32, 32)
    inputs: dict[str, dict[str, Any]] = {
        "ids": {"input_ids": ids},
        "pairs": {"input_ids": ids, "decoder_input_ids": ids[:, :5]},
        "sound": {"input_features": torch.randn(2, 8, 32), "decoder_input_ids": ids[:, :5]},
        "image": {"pixel_values": image},
        "both": {"input_ids": ids, "pixel_values": image},
    }
    return made, inputs[kind]


def _listed() -> dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]]:
    found: dict[str, Callable[[], tuple[nn.Module, dict[str, Any]]]] = {}
    for library, make, text in (
        ("torchvision", _torchvision, _TORCHVISION),
        ("timm", _timm, _TIMM),
    ):
        for entry in text.split():
            name, side = entry.split(":")
            found[f"{library}/{name}"] = functools.partial(make, name, int(side))
    for name, described in _TRANSFORMERS.items():
        found[f"transformers/{name}"] = functools.partial(_transformers, *described)
    return found


ARCHITECTURES = _listed()
