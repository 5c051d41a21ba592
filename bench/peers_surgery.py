"""Surgery beside Torch-Pruning, the whole job: python -m bench.peers_surgery [--output FILE].

Half of the channels of every group, chosen by their L2 norm: trace, score, select, plan, cut in
place. Every run is a process of its own, one thread, the entrants in turn; time is CPU seconds of
the job without imports and without building the model; memory is the largest resident set during
the job and what it was before. After the job the smaller model must run, and ours must give what
the original gives with the removed channels silenced where that is feasible (float64, CNNs).

torchvision, timm, transformers and torch_pruning are used where they are installed: ``--site DIR``
adds a folder to look in.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from threading import Event, Thread
from typing import Any

import torch
from torch import Tensor, nn

OURS, PEER = "infoslice", "torch-pruning"
MIB = 2**20


@dataclass(frozen=True)
class Probe:
    """``goal``: CPU seconds wanted of ours. ``rounds``: of each entrant. ``limit``: wall seconds.

    ``exact``: a network without statistics across channels, where slicing is silencing.
    """

    name: str
    build: Callable[[], tuple[nn.Module, dict[str, Any]]]
    goal: float | None
    rounds: int = 3
    limit: int = 120
    exact: bool = False


def _image(model: nn.Module) -> tuple[nn.Module, dict[str, Any]]:
    return model.eval(), {"x": torch.zeros(1, 3, 224, 224)}


def resnet50() -> tuple[nn.Module, dict[str, Any]]:
    import torchvision

    return _image(torchvision.models.resnet50())


def densenet201() -> tuple[nn.Module, dict[str, Any]]:
    import torchvision

    return _image(torchvision.models.densenet201())


def vit_b16() -> tuple[nn.Module, dict[str, Any]]:
    import timm

    return _image(timm.create_model("vit_base_patch16_224"))


def _language(kind: str, **sizes: Any) -> tuple[nn.Module, dict[str, Any]]:
    import transformers

    config = getattr(transformers, f"{kind}Config")(**sizes)
    model = getattr(transformers, f"{kind}ForCausalLM")(config)
    return model.eval(), {"input_ids": torch.zeros(1, 8, dtype=torch.int64), "use_cache": False}


def llama_1b() -> tuple[nn.Module, dict[str, Any]]:
    return _language(
        "Llama", vocab_size=32000, hidden_size=2048, num_hidden_layers=16, intermediate_size=8192,
        num_attention_heads=32, num_key_value_heads=8,
    )  # fmt: skip


def qwen3() -> tuple[nn.Module, dict[str, Any]]:
    return _language(
        "Qwen3", vocab_size=4000, hidden_size=1024, num_hidden_layers=4, intermediate_size=3072,
        num_attention_heads=16, num_key_value_heads=8, head_dim=128,
    )  # fmt: skip


PROBES = [
    Probe("ResNet-50", resnet50, 0.10, rounds=5, exact=True),
    Probe("ViT-B/16", vit_b16, 0.30, rounds=3),
    Probe("DenseNet-201", densenet201, 0.30, rounds=1, limit=300, exact=True),
    Probe("LLaMA 2048 x 16, heads 32/8, fp32", llama_1b, 2.0, rounds=1, limit=600),
    Probe("Qwen3 1024 x 4, heads 16/8", qwen3, None, rounds=1, limit=100),
]


# ---- the entrants: each returns the smaller model, and what else is worth a line


def ours(model: nn.Module, inputs: dict[str, Any]) -> tuple[nn.Module, dict[str, float]]:
    from infoslice import plan, trace
    from infoslice.criteria import l2_norm
    from infoslice.group_statistics import GroupStatistics
    from infoslice.group_weights import filters

    graph = trace(model, inputs)
    keep: dict[str, Tensor] = {}
    for group in graph.prunable:
        scores = l2_norm(GroupStatistics(group, model, dict), filters(group, model))
        keep[group.name] = scores.topk(max(1, group.channels // 2)).indices.sort().values
    surgery = plan(graph, keep=keep).apply(model, inplace=True)
    return surgery.model, {"groups": len(keep)}


def error(model: nn.Module, inputs: dict[str, Any]) -> float:
    """Largest relative difference between the smaller model and the original with the removed
    channels silenced in every layer that reads them, in float64."""
    from infoslice import plan, trace

    model = model.double()
    x = torch.randn(2, *inputs["x"].shape[1:], dtype=torch.float64)
    graph = trace(model, x)
    keep = {group.name: torch.arange(0, group.channels, 2) for group in graph.prunable}
    with torch.no_grad():
        sliced = plan(graph, keep=keep).apply(model).model(x)
        tensors = dict(model.named_parameters())
        for group in graph.prunable:
            removed = torch.arange(1, group.channels, 2)
            for piece in group.slices:
                if piece.role == "in":
                    places = piece.index_map.indices(removed)
                    tensors[piece.tensor].index_fill_(piece.axis, places, 0)
        silenced = model(x)
    return float((sliced - silenced).abs().max() / silenced.abs().max())


def second_plan(model: nn.Module, inputs: dict[str, Any]) -> float:
    """Seconds for another plan on a graph that is there, validated, as in a search."""
    from infoslice import plan, trace

    graph = trace(model, inputs)
    took = []
    for step in (2, 3, 4, 5, 6):
        keep = {group.name: range(0, group.channels, step) for group in graph.prunable}
        start = time.process_time()
        plan(graph, keep=keep).validate(model)
        took.append(time.process_time() - start)
    return median(took)


def theirs(model: nn.Module, inputs: dict[str, Any]) -> tuple[nn.Module, dict[str, float]]:
    import torch_pruning as peer  # type: ignore[import-not-found]

    heads: dict[nn.Module, int] = {}
    ignored = [m for n, m in model.named_modules() if n in ("fc", "head", "classifier", "lm_head")]
    for module in model.modules():
        if hasattr(module, "qkv"):
            heads[module.qkv] = module.num_heads
        elif hasattr(module, "q_proj"):
            config = module.config
            heads[module.q_proj] = config.num_attention_heads
            heads[module.k_proj] = heads[module.v_proj] = config.num_key_value_heads
    given = inputs.get("x", inputs)
    pruner = peer.pruner.BasePruner(
        model, given, peer.importance.GroupMagnitudeImportance(p=2), pruning_ratio=0.5,
        ignored_layers=ignored, num_heads=heads, prune_num_heads=True, prune_head_dims=False,
        head_pruning_ratio=0.5,
        forward_fn=None if "x" in inputs else lambda m, x: m(**x).logits,
    )  # fmt: skip
    pruner.step()
    for module in model.modules():  # its users mend these by hand
        if hasattr(module, "qkv"):
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
            module.attn_dim = module.qkv.out_features // 3
        elif hasattr(module, "q_proj"):
            pairs = pruner.num_heads[module.q_proj], pruner.num_heads[module.k_proj]
            module.num_key_value_groups = pairs[0] // pairs[1]
    return model, {}


ENTRANTS = {OURS: ours, PEER: theirs}


# ---- one run, in a process of its own


def _resident() -> int:
    """Bytes of this process in memory now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Peak:
    """Largest resident set while it is entered, looked at every 10 ms by another thread."""

    def __enter__(self) -> Peak:
        self.before = self.peak = _resident()
        self._end = Event()
        self._thread = Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._end.wait(0.01):
            self.peak = max(self.peak, _resident())

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()
        self.peak = max(self.peak, _resident())


def _warm_up(entrant: str) -> None:
    """What every first call of a process pays: imports, tables of operators."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1))
    ENTRANTS[entrant](net.eval(), {"x" if entrant == PEER else "input": torch.zeros(1, 3, 8, 8)})


def run_one(probe: Probe, entrant: str, what: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    _warm_up(entrant)
    torch.manual_seed(0)
    with torch.no_grad():
        model, inputs = probe.build()
    if what == "plan":
        return {"plan": second_plan(model, inputs)}
    if what == "error":
        return {"error": error(model, inputs)}
    parameters = sum(p.numel() for p in model.parameters())
    weights = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    largest = max(t.numel() * t.element_size() for t in model.parameters())
    with Peak() as watched:
        start = time.process_time()
        smaller, found = ENTRANTS[entrant](model, inputs)
        seconds = time.process_time() - start
    with torch.no_grad():
        output = smaller(**inputs)
    finite = bool(getattr(output, "logits", output).isfinite().all())
    left = sum(p.numel() for p in smaller.parameters())
    return {
        "seconds": seconds, "above": watched.peak - watched.before, "weights": weights,
        "largest": largest, "before": parameters, "after": left, "runs": finite, **found,
    }  # fmt: skip


def child(probe: Probe, entrant: str, what: str, site: str | None) -> dict[str, Any]:
    command = [sys.executable, "-m", "bench.peers_surgery", "--child", probe.name, entrant, what]
    command += ["--site", site] if site else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=probe.limit, env=environment,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {probe.limit} s"}
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["nothing"]
        return {"failed": f"failed: {said[-1][:120]}"}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


# ---- the table


def measured(probe: Probe, site: str | None, peer: bool) -> list[str]:
    entrants = [OURS, *([PEER] if peer else [])]
    runs: dict[str, list[dict[str, Any]]] = {entrant: [] for entrant in entrants}
    for _ in range(probe.rounds):
        for entrant in entrants:
            if not any("failed" in run for run in runs[entrant]):
                runs[entrant].append(child(probe, entrant, "time", site))
    cells: dict[str, list[str]] = {}
    seconds: dict[str, float] = {}
    for entrant in entrants:
        failed = next((run["failed"] for run in runs[entrant] if "failed" in run), None)
        if failed:
            cells[entrant] = [failed, "", ""]
            continue
        first = runs[entrant][0]
        seconds[entrant] = median(run["seconds"] for run in runs[entrant])
        above = f"{max(run['above'] for run in runs[entrant]) / MIB:.0f}"
        ratio = f"{first['before'] / 1e6:.1f} -> {first['after'] / 1e6:.1f}"
        cells[entrant] = [f"{seconds[entrant]:.3f}", above, ratio if first["runs"] else "NaN"]
        if entrant == OURS:
            cells[OURS].append(f"{first['weights'] / MIB:.0f} / {first['largest'] / MIB:.0f}")
    if probe.exact:
        found = child(probe, OURS, "error", site)
        cells[OURS][2] += f", error {found.get('error', float('nan')):.0e}"
    cells.setdefault(PEER, ["", "", ""])
    times = f"{seconds[PEER] / seconds[OURS]:.0f}x" if len(seconds) == 2 else ""
    goal = "" if probe.goal is None else f"{probe.goal:.2f}"
    mine = cells[OURS] + [""] * (4 - len(cells[OURS]))
    return [probe.name, goal, mine[0], cells[PEER][0], times, mine[1], cells[PEER][1], mine[3],
            mine[2], cells[PEER][2]]  # fmt: skip


COLUMNS = ["probe", "goal, s", "ours, s", "torch-pruning, s", "ratio", "memory on top, ours, MiB",
           "theirs, MiB", "weights / largest tensor, MiB", "10^6 parameters, ours",
           "theirs"]  # fmt: skip


def header() -> list[str]:
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    cpu = next(
        (line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.processor()
    )  # fmt: skip
    versions = [f"python {platform.python_version()}", f"torch {torch.__version__}"]
    for name in ("torch_pruning", "torchvision", "timm", "transformers"):
        if importlib.util.find_spec(name):
            versions.append(f"{name} {importlib.metadata.version(name)}")
    return [
        "# Surgery beside Torch-Pruning", "",
        f"{cpu}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f} at the start; "
        f"{', '.join(versions)}; commit {commit}", "",
        "`python -m bench.peers_surgery`: the whole job (graph, L2 scores, half of every group, "
        "cut in place) in CPU seconds of one thread, each run in a process of its own, medians; "
        "memory on top of the model and the libraries.", "",
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="probes whose name has this in it")
    parser.add_argument("--output", type=Path, help="write the table there too")
    parser.add_argument("--site", help="a folder with torchvision, timm, transformers, the peer")
    parser.add_argument("--ours", action="store_true", help="without the peer")
    parser.add_argument("--child", nargs=3, metavar=("PROBE", "ENTRANT", "WHAT"))
    options = parser.parse_args()
    if options.site:
        use(options.site)
    if options.child:
        name, entrant, what = options.child
        probe = next(probe for probe in PROBES if probe.name == name)
        print(json.dumps(run_one(probe, entrant, what)))
        return
    peer = not options.ours and importlib.util.find_spec("torch_pruning") is not None
    lines = header()
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    print("\n".join(lines), flush=True)
    for probe in PROBES:
        if options.only.lower() in probe.name.lower():
            lines.append(f"| {' | '.join(measured(probe, options.site, peer))} |")
            print(lines[-1], flush=True)
    again = child(PROBES[0], OURS, "plan", options.site)
    if "plan" in again:
        lines += ["", f"A second plan on the graph of ResNet-50, validated: "
                  f"{again['plan'] * 1e3:.1f} ms (goal 5)."]  # fmt: skip
        print(lines[-1])
    if options.output:
        options.output.write_text("\n".join(lines) + "\n")


def use(site: str) -> None:
    """Look for packages in ``site`` too; torchvision without its C++ part needs two names."""
    sys.path.append(site)
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)  # what it defines lives as long as it does


_libraries: list[Any] = []

if __name__ == "__main__":
    main()
