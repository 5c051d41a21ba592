"""Cut, save_pretrained, from_pretrained: the same logits, or a refusal before anything is cut."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch

import infoslice
from infoslice.selection import select

transformers = pytest.importorskip("transformers")

from infoslice.integrations import huggingface  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

IDS = torch.tensor([[5, 9, 33, 2, 17], [8, 8, 50, 41, 3]])
SMALL = {
    "vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48,
    "num_attention_heads": 4, "max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2,
    "pad_token_id": 0,
}  # fmt: skip
GQA = {**SMALL, "num_key_value_heads": 2}


def build(family, **entries):
    torch.manual_seed(0)
    kind = getattr(transformers, FAMILIES[family][0])
    return kind(kind.config_class(**{**FAMILIES[family][1], **entries})).eval()


def inputs(model):
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(2, 3, 16, 16, dtype=model.dtype)}
    if model.main_input_name == "input_features":
        made = {"input_features": torch.randn(2, 8, 32, dtype=model.dtype)}
    else:
        made = {"input_ids": IDS.to(model.device)}
    if model.config.is_encoder_decoder:
        made["decoder_input_ids"] = IDS[:, :4]
    if model.can_generate():
        made["use_cache"] = False
    return made


def halve(model, which):
    """Half of the channels of every group whose name has one of these words in it."""
    graph = infoslice.trace(model, (), example_kwargs=inputs(model))
    groups = [g for g in graph.prunable if any(word in g.name for word in which)]
    assert groups, [group.name for group in graph.prunable]
    keep = select({g.name: torch.rand(g.channels) for g in groups}, 0.5, allocation="uniform")
    return infoslice.plan(graph, keep=keep)


def logits(model):
    with torch.no_grad():
        return model(**inputs(model)).logits


def reload(model, directory, **options):
    model.save_pretrained(directory, **options)
    loaded, told = type(model).from_pretrained(directory, output_loading_info=True)
    assert not any(told.values()), told
    # Weights mapped from a file lie at odd addresses, where some kernels round otherwise.
    return copy.deepcopy(loaded.eval())


MLP = ("mlp", "fc", "intermediate", "Dense", "dense_h")
T5 = {
    "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
WHISPER = {
    "vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 40, "num_mel_bins": 8, "max_source_positions": 16,
    "max_target_positions": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 1, "begin_suppress_tokens": None,
}  # fmt: skip
GPT2 = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1,
        "eos_token_id": 2}  # fmt: skip
OPT = {**SMALL, "ffn_dim": 48, "word_embed_proj_dim": 32}
del OPT["intermediate_size"]
VIT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48,
       "image_size": 16, "patch_size": 8}  # fmt: skip
FEWER_HEADS = {"num_attention_heads": 1, "num_key_value_heads": 1}
# class, config, groups halved, what the config says afterwards
FAMILIES = {
    "llama": ("LlamaForCausalLM", GQA, [""],
              {**FEWER_HEADS, "hidden_size": 16, "intermediate_size": 24, "head_dim": 8}),
    "llama mlp": ("LlamaForCausalLM", GQA, MLP, {"intermediate_size": 24}),
    "qwen2": ("Qwen2ForCausalLM", GQA, ["attn"], {**FEWER_HEADS, "head_dim": 8}),
    "qwen3 16/8": ("Qwen3ForCausalLM",
                   {**SMALL, "num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 4},
                   [""], {"num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 4}),
    "mistral": ("MistralForCausalLM", {**SMALL, "num_key_value_heads": 1}, ["attn"],
                {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}),
    "gemma2": ("Gemma2ForCausalLM", {**GQA, "head_dim": 8}, ["mlp", "attn"],
               {**FEWER_HEADS, "intermediate_size": 24}),
    "phi3": ("Phi3ForCausalLM", GQA, MLP, {"intermediate_size": 24}),
    "gpt2": ("GPT2LMHeadModel", GPT2, MLP, {"n_inner": 64}),
    "gpt2 all": ("GPT2LMHeadModel", GPT2, [""], {"n_embd": 16, "n_head": 2, "n_inner": None}),
    "gpt_neox": ("GPTNeoXForCausalLM", SMALL, [""],
                 {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}),
    "opt": ("OPTForCausalLM", OPT, [""],
            {"hidden_size": 16, "num_attention_heads": 2, "ffn_dim": 24}),
    "bert": ("BertForSequenceClassification", SMALL, MLP, {"intermediate_size": 24}),
    "t5": ("T5ForConditionalGeneration", T5, ["block"], {"d_ff": 24, "num_heads": 2, "d_kv": 8}),
    "whisper": ("WhisperForConditionalGeneration", WHISPER, MLP,
                {"encoder_ffn_dim": 24, "decoder_ffn_dim": 20}),
    "vit": ("ViTForImageClassification", VIT, ["mlp", "attention"],
            {"intermediate_size": 24, "num_attention_heads": 2}),
}  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_reloads_to_the_same_logits_and_generates(family, tmp_path):
    _, _, which, expected = FAMILIES[family]
    model = build(family)
    plan = halve(model, which)
    before = model.config.to_dict()
    smaller = huggingface.apply(model, plan).model
    assert model.config.to_dict() == before
    assert {name: smaller.config.to_dict().get(name) for name in expected} == expected
    loaded = reload(smaller, tmp_path)
    torch.manual_seed(1)
    ours = logits(smaller)
    torch.manual_seed(1)
    assert torch.equal(logits(loaded), ours)
    if smaller.can_generate():
        given = {smaller.main_input_name: inputs(smaller)[smaller.main_input_name]}
        how = {"max_new_tokens": 4, "do_sample": False, "use_cache": True}
        assert torch.equal(loaded.generate(**given, **how), smaller.generate(**given, **how))


@pytest.mark.parametrize("family", ["llama", "t5", "vit"])
def test_models_read_from_disk_are_cut_like_those_built_here(family, tmp_path):
    build(family).save_pretrained(tmp_path / "whole")
    model = type(build(family)).from_pretrained(tmp_path / "whole").eval()
    smaller = huggingface.apply(model, halve(model, FAMILIES[family][2])).model
    torch.manual_seed(1)
    ours = logits(smaller)
    loaded = reload(smaller, tmp_path / "smaller")
    torch.manual_seed(1)
    assert torch.allclose(logits(loaded), ours, atol=1e-6)
    again = halve(loaded, FAMILIES[family][2])  # what was cut and read may be cut again
    assert huggingface.plan_config(loaded, again) is not loaded.config


def test_cached_and_uncached_generation_agree():
    smaller = huggingface.apply(build("llama"), halve(build("llama"), [""])).model
    how = {"max_new_tokens": 6, "do_sample": False}
    with_cache = smaller.generate(IDS, use_cache=True, **how)
    assert torch.equal(with_cache, smaller.generate(IDS, use_cache=False, **how))


@pytest.mark.parametrize(
    ("family", "which", "reason"),
    [
        # Modelling code has no width of heads but hidden_size; it would need both cut alike.
        ("gpt2", ["attn"], r"c_attn.weight has shape \(32, 48\), where the nearest config gives"),
        ("opt", ["self_attn"], "leave whole model.decoder.layers.0.self_attn"),
        # The width is in the numbers: embeddings or logits are scaled by its root.
        ("t5", ["embed_tokens"], r"mul .* where the cut one calls mul"),
        ("gemma2", ["embed_tokens"], "embed_scale, which is not saved, has other values"),
    ],
)
def test_what_no_config_says_is_refused_before_anything_is_cut(family, which, reason):
    model = build(family)
    plan = halve(model, which)
    config, state = model.config.to_dict(), copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=f"(?s){reason}.*save_pruned"):
        huggingface.apply(model, plan, inplace=True)
    assert model.config.to_dict() == config
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())


def test_widths_that_differ_between_layers_are_refused_where_the_config_has_one_number():
    model = build("llama")
    graph = infoslice.trace(model, (), example_kwargs=inputs(model))
    first, second = (g.name for g in graph.prunable if "mlp" in g.name)
    plan = infoslice.plan(graph, keep={first: range(24), second: range(20)})
    with pytest.raises(ValueError, match=r"24 in layers 0, 20 in layers 1\); .*'uniform'"):
        huggingface.plan_config(model, plan)


def test_what_the_config_itself_forbids_is_refused_in_its_words():
    model = build("llama", num_key_value_heads=4)
    graph = infoslice.trace(model, (), example_kwargs=inputs(model))
    heads = [g.name for g in graph.prunable if "self_attn" in g.name]
    plan = infoslice.plan(graph, remove={name: [1] for name in heads})
    with pytest.raises(ValueError, match=r"hidden size \(32\) is not a multiple .*save_pruned"):
        huggingface.plan_config(model, plan)


def test_widths_may_differ_between_layers_where_the_config_lists_them(tmp_path):
    config = transformers.Gemma3nTextConfig(
        **{**GQA, "intermediate_size": [48, 40]}, head_dim=8, vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=8, laurel_rank=4, num_kv_shared_layers=0,
        activation_sparsity_pattern=None,
    )  # fmt: skip
    model = transformers.Gemma3nForCausalLM(config).eval()
    graph = infoslice.trace(model, (), example_kwargs=inputs(model))
    first, second = (g.name for g in graph.prunable if "mlp" in g.name)
    plan = infoslice.plan(graph, keep={first: range(24), second: range(1, 40, 3)})
    smaller = huggingface.apply(model, plan).model
    assert smaller.config.intermediate_size == [24, 13]
    assert torch.equal(logits(reload(smaller, tmp_path)), logits(smaller))


def test_a_config_of_the_right_shapes_that_computes_something_else_is_refused(monkeypatch):
    model = build("llama")
    plan = halve(model, ["attn"])  # 4 heads of 8 become 1; 4 heads of 2 have the same shapes

    def shorter_heads(kind, guess, target):
        config = copy.deepcopy(guess.config)
        config.head_dim, config.num_key_value_heads = 2, 4
        return guess._replace(config=config, shapes=target)

    monkeypatch.setattr(huggingface, "search", shorter_heads)
    with pytest.raises(ValueError, match=r"inv_freq|scaling|calls"):
        huggingface.plan_config(model, plan)


def test_buffers_numbers_and_operators_are_compared():
    """Each of the three is what tells the two apart, with the same names and shapes."""
    model = build("llama")
    plan = halve(model, MLP)
    whole, smaller = huggingface._solve("test", model, plan)
    huggingface._prove(model, whole, smaller, plan)
    for spoil, reason in (
        (lambda m: m.model.rotary_emb.inv_freq.mul_(2), "inv_freq"),
        (lambda m: setattr(m.model.layers[1].self_attn, "scaling", 0.25), "scaling"),
        (lambda m: setattr(m.model.layers[0].mlp.act_fn, "forward", torch.relu), "calls relu"),
        (lambda m: setattr(m.lm_head, "weight", m.model.embed_tokens.weight), "weight|tied"),
    ):
        spoilt = copy.deepcopy(smaller)
        spoil(spoilt)
        with pytest.raises(ValueError, match=reason):
            huggingface._prove(model, whole, spoilt, plan)


def test_ties_stay_tied(tmp_path):
    model = build("llama", tie_word_embeddings=True)
    smaller = huggingface.apply(model, halve(model, [""])).model
    loaded = reload(smaller, tmp_path)
    for made in (smaller, loaded):
        assert made.lm_head.weight is made.model.embed_tokens.weight
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    with pytest.raises(ValueError, match=r"lm_head.weight is missing; .*untied"):
        huggingface.plan_config(model, halve(model, MLP))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_precision_and_shards_survive(dtype, tmp_path):
    model = build("llama").to(dtype)
    smaller = huggingface.apply(model, halve(model, [""])).model
    loaded = reload(smaller, tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert {p.dtype for p in loaded.parameters()} == {dtype}
    # Rotary tables are no weights: transformers computes them anew in float32.
    loaded.model.rotary_emb.to(dtype)
    assert torch.equal(logits(loaded), logits(smaller))


def test_a_model_cut_in_place_trains_on_and_saves(tmp_path):
    model = build("llama")
    optimizer = torch.optim.Adam(model.parameters())
    model(**inputs(model), labels=IDS).loss.backward()
    optimizer.step()
    generation = model.generation_config.to_dict()
    assert huggingface.apply(model, halve(model, [""]), inplace=True, optimizer=optimizer)[0] is (
        model
    )
    model(**inputs(model), labels=IDS).loss.backward()
    optimizer.step()
    assert model.generation_config.to_dict() == generation
    assert torch.equal(logits(reload(model, tmp_path)), logits(model))


def test_update_config_follows_a_model_cut_elsewhere(tmp_path):
    model = build("t5")
    plan = halve(model, ["block"])
    with pytest.raises(ValueError, match="cut by this plan"):
        huggingface.update_config(model, plan)
    smaller = plan.apply(model).model
    huggingface.update_config(smaller, plan)
    assert smaller.encoder.config.d_ff == smaller.decoder.config.d_ff == 24
    assert torch.equal(logits(reload(smaller, tmp_path)), logits(smaller))
    with pytest.raises(ValueError, match="the config of the model before the cut"):
        huggingface.update_config(smaller, plan)


def test_a_plan_of_a_file_and_a_model_without_weights():
    with torch.device("meta"):
        model = build("qwen2")
    plan = infoslice.PruningPlan.from_json(halve(model, ["attn"]).to_json())
    assert huggingface.plan_config(model, plan).num_attention_heads == 1
    assert huggingface.apply(model, plan).model.config.head_dim == 8


def test_uniform_allocation_gives_every_layer_the_same_widths():
    model = build("llama")
    graph = infoslice.trace(model, (), example_kwargs=inputs(model))
    scores = {g.name: torch.rand(g.channels) for g in graph.prunable if "mlp" in g.name}
    for ratio in (0.1, 0.37, 0.8):
        keep = select(scores, ratio, allocation="uniform", round_to=8)
        widths = {len(kept) for kept in keep.values()}
        assert (len(keep), len(widths)) == (2, 1)
        config = huggingface.plan_config(model, infoslice.plan(graph, keep=keep))
        assert {config.intermediate_size} == widths


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: setattr(m.model.layers[1].mlp, "act_fn", torch.nn.ReLU()), "act_fn is a ReLU"),
        (lambda m: setattr(m.model.layers[1].self_attn, "scaling", 0.05), "scaling is 0.05"),
        (lambda m: setattr(m.model.norm, "variance_epsilon", 0.5), "variance_epsilon is 0.5"),
        (lambda m: m.model.rotary_emb.inv_freq.mul_(3), "inv_freq, which is not saved"),
    ],
)
def test_models_changed_by_hand_are_refused(change, reason):
    model = build("llama")
    change(model)
    plan = halve(model, MLP)
    with pytest.raises(ValueError, match=reason):
        huggingface.plan_config(model, plan)
    with pytest.raises(ValueError, match=reason):
        huggingface.update_config(plan.apply(model).model, plan)


def test_models_that_are_not_plain_are_refused_by_name():
    model = build("llama")
    plan = halve(model, MLP)
    with pytest.raises(TypeError, match="Linear"):
        huggingface.plan_config(torch.nn.Linear(2, 2), plan)
    model._hf_peft_config_loaded = True
    with pytest.raises(TypeError, match="adapters"):
        huggingface.plan_config(model, plan)
    del model._hf_peft_config_loaded
    model.config.quantization_config = {"quant_method": "fp8"}
    with pytest.raises(TypeError, match=r"quantised.*fp8"):
        huggingface.plan_config(model, plan)


def test_the_examples_of_the_docs_run(tmp_path, monkeypatch):
    page = Path(__file__).parents[1] / "docs" / "huggingface.md"
    found = re.findall(r"^```python transformers\n(.*?)^```$", page.read_text(), re.M | re.S)
    assert len(found) == 2
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for code in found:  # the second prunes the model of the first
        exec(compile(code, page.name, "exec"), names)
