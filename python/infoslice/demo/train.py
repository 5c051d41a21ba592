"""Trains the demo's network on Fashion-MNIST and writes the two files that ship with it.

    python -m infoslice.demo.train DATASET_FOLDER [OUTPUT_FOLDER]

``DATASET_FOLDER`` holds the four ``*-ubyte.gz`` files, as in the Debian package
``dataset-fashion-mnist``. Seeded; one thread; about ten minutes.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from infoslice.demo.network import ResNet, accuracy, standardise

EPOCHS, BATCH, RATE, DECAY = 10, 128, 3e-3, 0.02
TEST_IMAGES = 2000  # every fifth of the 10,000


def read(folder: Path, split: str) -> tuple[Tensor, Tensor]:
    """The images, uint8 ``[N, 28, 28]``, and labels, int64 ``[N]``, of ``train`` or ``t10k``."""
    pixels = gzip.decompress((folder / f"{split}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{split}-labels-idx1-ubyte.gz").read_bytes())[8:]
    images = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).view(-1, 28, 28)
    return images, torch.frombuffer(bytearray(labels), dtype=torch.uint8).long()


def train(pixels: Tensor, labels: Tensor, seed: int = 0) -> ResNet:
    """AdamW with a one-cycle rate; random flips and shifts of up to two pixels."""
    torch.manual_seed(seed)
    model = ResNet().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    steps = EPOCHS * -(-len(labels) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        for batch in torch.split(torch.randperm(len(labels)), BATCH):
            x = F.pad(pixels[batch], (2, 2, 2, 2))
            dy, dx = torch.randint(0, 5, (2,)).tolist()
            x = x[:, dy : dy + 28, dx : dx + 28]
            if torch.rand(()) < 0.5:
                x = x.flip(2)
            loss = F.cross_entropy(model(standardise(x)), labels[batch], label_smoothing=0.05)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            schedule.step()
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def main(dataset: Path, output: Path) -> None:
    """Train, print the accuracy on all test images and write weights and images."""
    torch.set_num_threads(1)
    model = train(*read(dataset, "train"))
    pixels, labels = read(dataset, "t10k")
    print(f"accuracy on the 10,000 test images: {accuracy(model, pixels, labels):.4f}")
    state = {
        key: (value.half() if value.is_floating_point() else value).contiguous()
        for key, value in model.state_dict().items()
    }
    save_file(state, output / "resnet.safetensors")
    keep = slice(None, None, len(labels) // TEST_IMAGES)
    np.savez_compressed(
        output / "test_images.npz",
        pixels=pixels[keep].numpy(),
        labels=labels[keep].to(torch.uint8).numpy(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else Path(__file__).parent)
