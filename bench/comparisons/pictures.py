"""Photos: 141 with ImageNet labels and others without (tuxpaint stamps), 20 of ImageNet (foolbox).

Stamps are cut-out photos of animals, food, instruments, vehicles; ``stamps.csv`` names the classes
that count as right for each (a stamp often says only "a frog").
"""

from __future__ import annotations

import csv
from pathlib import Path

import carriers
import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# Of the stamps without a label: folders with drawings, letters and signs.
DRAWN = ("cartoon", "symbols/", "town/", "seasonal/", "space/", "people/", "naturalforces/")


def _tensor(image: Image.Image) -> Tensor:
    x = (np.asarray(image.convert("RGB"), np.float32) / 255 - MEAN) / STD
    return torch.from_numpy(x.transpose(2, 0, 1).astype(np.float32))


def _stamp(path: Path, size: int) -> Tensor:
    """In the middle of a white square, the longer side 85 % of it."""
    image = Image.open(path).convert("RGBA")
    image = image.crop(image.getchannel("A").getbbox())
    scale = 0.85 * size / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS)
    white = Image.new("RGB", (size, size), (255, 255, 255))
    white.paste(image, ((size - width) // 2, (size - height) // 2), image)
    return _tensor(white)


def _folder() -> Path:
    command = "apt-get install tuxpaint-stamps-default"
    return carriers.folder("/usr/share/tuxpaint/stamps", command)


def _labels() -> dict[str, list[int]]:
    with (Path(__file__).parent / "stamps.csv").open(encoding="utf-8") as stream:
        rows = {row["stamp"]: row["classes"] for row in csv.DictReader(stream)}
    labels = {}
    for name, classes in rows.items():
        first, dash, last = classes.partition("-")
        both = range(int(first), int(last) + 1) if dash else map(int, classes.split())
        labels[name] = list(both)
    return labels


def labelled_stamps(size: int) -> tuple[Tensor, Tensor]:
    """Images ``[141, 3, size, size]`` and a bool ``[141, 1000]``: the classes that are right."""
    labels = _labels()
    right = torch.zeros(len(labels), 1000, dtype=torch.bool)
    for row, classes in zip(right, labels.values(), strict=True):
        row[classes] = True
    return torch.stack([_stamp(_folder() / f"{name}.png", size) for name in labels]), right


def other_stamps(size: int) -> Tensor:
    """Stamps that are in no evaluation, ``[N, 3, size, size]``: photos and a few drawings."""
    used = set(_labels())
    names = (p.relative_to(_folder()).with_suffix("").as_posix() for p in _folder().rglob("*.png"))
    free = sorted(n for n in names if n not in used and not any(word in n for word in DRAWN))
    return torch.stack([_stamp(_folder() / f"{name}.png", size) for name in free])


def imagenet_photos(size: int) -> Tensor:
    """The 20 validation photos of ImageNet in foolbox, ``[20, 3, size, size]``."""
    folder = carriers.package("foolbox", "pip install --no-deps foolbox") / "data"
    images = []
    for path in sorted(folder.glob("imagenet_*.jpg")):
        image = Image.open(path)
        side = min(image.size) * size // (size + 32)
        left, top = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top, left + side, top + side))
        images.append(_tensor(image.resize((size, size), Image.Resampling.BICUBIC)))
    return torch.stack(images)


def draw(images: Tensor, count: int, seed: int) -> Tensor:
    """``count`` of the images, in another order for every seed."""
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    return images[order[:count]]
