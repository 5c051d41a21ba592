"""English text and judgements of similarity that come inside the gensim package."""

from __future__ import annotations

import bz2
import html
import re
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


def wikipedia() -> str:
    """Prose of English Wikipedia articles, about 2.5 million characters; markup removed."""
    name = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
    dump = bz2.decompress((_folder() / name).read_bytes()).decode()
    bodies = (found.group(1) for found in re.finditer(r"<text[^>]*>(.*?)</text>", dump, re.S))
    articles = (
        _prose(body) for body in bodies if not body.lstrip().upper().startswith("#REDIRECT")
    )
    return "\n\n".join(article for article in articles if len(article) > 500)


def _prose(markup: str) -> str:
    """The paragraphs of an article: lines of more than 120 characters that are no list or table."""
    text = re.sub(r"<!--.*?-->", "", html.unescape(markup), flags=re.S)
    for _ in range(6):  # templates stand in each other
        text = re.sub(r"\{\{[^{}]*\}\}", "", text)
    for pattern, replacement in (
        (r"\{\|.*?\|\}", ""),
        (r"<ref[^>/]*/>", ""),
        (r"<ref.*?</ref>", ""),
        (r"<[^>]+>", ""),
    ):
        text = re.sub(pattern, replacement, text, flags=re.S)
    for _ in range(3):  # links in captions
        text = re.sub(
            r"\[\[(?:File|Image|Category)[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]", "", text
        )
    for pattern, replacement in (
        (r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1"),
        (r"\[https?://\S+ ([^\]]*)\]", r"\1"),
        (r"\[https?://\S+\]", ""),
        (r"'{2,}", ""),
    ):
        text = re.sub(pattern, replacement, text)
    lines = (line.strip() for line in text.split("\n"))
    return "\n".join(x for x in lines if len(x) > 120 and not x.startswith(tuple("*#|:;!={}[")))
