"""English text and judgements of similarity that come inside the gensim package."""

from __future__ import annotations

from pathlib import Path

import carriers
import numpy as np
import numpy.typing as npt


def _folder() -> Path:
    return carriers.package("gensim", "pip install --no-deps gensim") / "test" / "test_data"


def news() -> list[str]:
    """300 short news stories (Lee background corpus)."""
    return (_folder() / "lee_background.cor").read_text(encoding="utf-8").strip().split("\n")


def lee_pairs() -> tuple[list[str], npt.NDArray[np.float64]]:
    """50 documents (in no other list) and how alike people found each two of them, ``[50, 50]``."""
    documents = (_folder() / "lee.cor").read_text(encoding="latin-1").strip().split("\n")
    return documents, np.loadtxt(_folder() / "similarities0-1.txt")


def word_pairs() -> list[tuple[str, str, float]]:
    """WordSim-353: two words and how related people found them."""
    lines = (_folder() / "wordsim353.tsv").read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [(a, b, float(c)) for a, b, c in (r[:3] for r in rows) if c.replace(".", "").isdigit()]
