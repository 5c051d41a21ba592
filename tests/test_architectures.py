"""Models of transformers, cut by half: exact, and nothing stays whole but what is named here.

``python -m bench.architectures`` does the same with models of torchvision and timm, which take
longer. The models are those of bench/architecture_list.py.
"""

from __future__ import annotations

import fnmatch
import logging
import math

import pytest

pytest.importorskip("transformers")

from bench.architecture_list import ARCHITECTURES
from bench.architectures import cut_by_half

NAMES = [name for name in ARCHITECTURES if name.startswith("transformers/")]

# Layers that no group cuts, by model; those that write the model's outputs come on top. A head tied
# to the embedding has a row for each word, a router for each expert; keys are as wide as queries.
WHOLE = {
    "*": "lm_head proj_out *.mlp.gate *.q_norm *.k_norm",
    "llama-mqa": "*.k_proj *.v_proj",  # there is one head
    "falcon": "*.query_key_value",
    "bloom": "*.query_key_value",  # slopes of heads are computed from their number
    "mpt": "*.Wqkv",
    "deberta_v2": "*.query_proj *.key_proj encoder.rel_embeddings *.pos_*_proj",
    "t5*": "shared",
    "bart": "model.shared",
    "clip": "*_projection",  # the angle between an image and a text is the output
    "siglip": "vision_model.* text_model.head",
}
SINGLE_PRECISION = ("deepseek_v3", "mamba2")  # they compute a part in float32 whatever they are


@pytest.fixture(autouse=True)
def _loud_again():
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", NAMES)
def test_models_are_cut(name):
    found = cut_by_half(name)
    short = name.partition("/")[2]
    assert found["error"] <= (1e-6 if short in SINGLE_PRECISION else 1e-9)
    assert found["moved"] > 1e-3
    assert math.isfinite(found["moved"])
    allowed = [
        pattern
        for model, patterns in WHOLE.items()
        if fnmatch.fnmatch(short, model)
        for pattern in patterns.split()
    ]
    missing = {
        path: reason
        for path, reason in found["whole"].items()
        if not any(fnmatch.fnmatch(path, pattern) for pattern in allowed)
    }
    assert not missing
