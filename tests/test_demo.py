"""The demo and the command line, as a user runs them."""

import json

import pytest
import torch

from infoslice import cli, demo
from infoslice.demo import comparison
from infoslice.demo.network import ResNet
from infoslice.saving import load_pruned


def test_shipped_network_and_images():
    model, (pixels, labels) = demo.load_network(), demo.load_images()
    assert pixels.shape == (2000, 28, 28)
    assert pixels.dtype == torch.uint8
    assert labels.bincount().tolist() == pytest.approx([200] * 10, abs=40)
    assert comparison.accuracy(model, pixels, labels) > 0.92


def test_demo_writes_table_plot_and_a_model_that_loads(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    few = [m for m in comparison.METHODS if m.criterion == "l1_norm" or m == comparison.BEST]
    monkeypatch.setattr(comparison, "METHODS", few)
    monkeypatch.setattr(comparison, "RATIOS", (0.5,))
    monkeypatch.setattr(comparison, "match", lambda model, begin, **_: begin)
    assert cli.main(["demo", "--fast", "--output", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    for word in ("unpruned", "l1_norm", "sequential", "reloaded", "MACs", "latency"):
        assert word in printed
    written = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert written == ["accuracy.png", "pruned.json", "pruned.safetensors", "results.json"]
    rows = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["method"]["criterion"] for row in rows] == ["unpruned", "l1_norm", "causal"]
    again = load_pruned(ResNet(), tmp_path / "out" / "pruned")
    assert sum(p.numel() for p in again.parameters()) == rows[-1]["parameters"]


def test_doctor_tells_what_is_built(capsys):
    assert cli.main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for word in ("infoslice", "torch", "CPU kernels", "CUDA", "covariance"):
        assert word in printed


def test_wrong_commands_are_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["prune-everything"])
    assert stopped.value.code == 2
    assert "invalid choice" in capsys.readouterr().err


def test_ctrl_c_ends_with_a_word_and_leaves_nothing_half_written(tmp_path, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(comparison, "match", interrupted)
    assert cli.main(["demo", "--output", str(tmp_path / "out")]) == 130
    assert "stopped" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []
