"""Finds weights and data that come inside installed packages, without importing these."""

from __future__ import annotations

import importlib.util
from pathlib import Path


def package(name: str, command: str) -> Path:
    """Folder of an installed package. Raises FileNotFoundError that says how to get it."""
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"package {name} is missing: {command}")
    return Path(found.submodule_search_locations[0])


def folder(path: str, command: str) -> Path:
    """A folder of the system. Raises FileNotFoundError that says how to get it."""
    if not Path(path).is_dir():
        raise FileNotFoundError(f"folder {path} is missing: {command}")
    return Path(path)
