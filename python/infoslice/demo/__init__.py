"""The embedded demo: a small trained network, test images, and what pruning does to them."""

from __future__ import annotations

from infoslice.demo.comparison import load_images, load_network, run

__all__ = ["load_images", "load_network", "run"]
