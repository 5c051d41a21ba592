"""Which architectures can be cut, and how exactly: ``python -m bench.architectures``.

Every model of bench/architecture_list.py is traced, every group that is offered is cut by half, and
the outputs of the smaller model are compared, in float64, with those of the whole model with the
removed channels silenced (tests/oracle.py). *Left whole* counts the layers that no group cuts,
without those that write the model's outputs. Each model runs in a process of its own with a time
limit. Needs torchvision, timm and transformers, see CONTRIBUTING.md.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import logging
import subprocess
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from bench.architecture_list import ARCHITECTURES
from infoslice import plan, trace

__all__ = ["cut_by_half"]

# Reasons that leave nothing to be wished for: outputs, tokens, the vocabulary of a tied embedding.
_EXPECTED = ("model output", "a single channel", "spatial or kernel axis", "looks its rows up")


def _first(result: Any) -> Tensor:
    """Logits, or the first tensor of a result."""
    for name in ("logits", "logits_per_text", "last_hidden_state"):
        found = getattr(result, name, None)
        if isinstance(found, Tensor):
            return found
    return next(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))


def _stirred(model: nn.Module) -> nn.Module:
    """In float64 and eval mode, with no parameter or statistic left at zero or one."""
    generator = torch.Generator().manual_seed(0)
    model = model.double().eval()
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            # What begins as zeros or a constant would hide what a cut does.
            if tensor.dtype == torch.float64 and (tensor.dim() < 2 or tensor.std() < 1e-4):
                noise = torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype)
                tensor.add_(0.2 * noise)
    return model


def cut_by_half(name: str) -> dict[str, Any]:
    """One architecture: what was offered and cut, the largest relative error, what stayed whole."""
    from oracle import silence

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    model, inputs = ARCHITECTURES[name]()
    model = _stirred(model)
    inputs = {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()}
    args = (inputs.pop(""),) if "" in inputs else ()
    start = time.process_time()
    graph = trace(model, args, example_kwargs=inputs)
    seconds = time.process_time() - start
    half = {
        g.name: torch.randperm(g.channels)[: g.channels // 2].sort().values for g in graph.prunable
    }
    pruning = plan(graph, remove=half)
    before = sum(p.numel() for p in model.parameters())
    untouched = {n: t.clone() for n, t in model.state_dict().items()}
    smaller = pruning.apply(model).model
    if any(not torch.equal(t, untouched[n]) for n, t in model.state_dict().items()):
        raise AssertionError("the model was changed")
    with torch.no_grad():
        ours = _first(smaller(*args, **inputs))
        silenced = _first(silence(model, pruning)(*args, **inputs))
        whole = _first(model(*args, **inputs))
    scale = silenced.abs().max()
    missing = {
        path: reason
        for path, reason in graph.whole.items()
        if not any(known in reason for known in _EXPECTED)
        and any(True for _ in model.get_submodule(path).parameters(False))
    }
    return {
        "name": name,
        "offered": len(graph.prunable),
        "groups": len(graph.groups),
        "left": sum(p.numel() for p in smaller.parameters()) / before,
        "error": float((ours - silenced).abs().max() / scale),
        "moved": float((whole - silenced).abs().max() / scale),
        "seconds": seconds,
        "whole": missing,
    }


def _row(found: dict[str, Any]) -> str:
    if "failed" in found:
        return f"| {found['name']} | | | | | | {found['failed']} |"
    reasons = Counter(found["whole"].values())
    listed = "; ".join(f"{n} × {reason}" for reason, n in reasons.most_common(2))
    return (
        f"| {found['name']} | {found['offered']} | {100 * found['left']:.0f} % | "
        f"{found['error']:.0e} | {found['seconds']:.2f} | {len(found['whole'])} | {listed} |"
    )


def _run(name: str, limit: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.architectures", "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "failed": f"not done in {limit:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {"name": name, "failed": last[:200].replace("|", "/")}
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    """Print the table, and write it where told."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("patterns", nargs="*", default=["*"], help="as transformers/llama*")
    parser.add_argument("--one", help="run this one here and print JSON")
    parser.add_argument("--limit", type=float, default=300, help="seconds for each")
    parser.add_argument("--output", type=Path, help="a Markdown file")
    options = parser.parse_args()
    if options.one:
        sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
        print(json.dumps(cut_by_half(options.one)))
        return
    names = [n for n in ARCHITECTURES if any(fnmatch.fnmatch(n, p) for p in options.patterns)]
    lines = [
        "| architecture | groups | parameters left | error | trace, s | layers left whole | why |",
        "|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines))
    results = []
    for name in names:
        results.append(_run(name, options.limit))
        lines.append(_row(results[-1]))
        print(lines[-1], flush=True)
    good = [r for r in results if "failed" not in r and r["error"] < 1e-9 and r["moved"] > 1e-9]
    summary = (
        f"{len(results)} architectures: {len(good)} cut exactly, "
        f"{sum(not r['whole'] for r in good)} of these with no layer left whole but those that "
        f"write the output, {sum('failed' in r for r in results)} failed"
    )
    print(f"\n{summary}")
    if options.output:
        versions = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
        head = ["# Architectures, every group cut by half", "", f"{summary}. {versions}.", ""]
        text = "\n".join([*head, *lines]) + "\n"
        temporary = options.output.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.rename(options.output)


if __name__ == "__main__":
    main()
