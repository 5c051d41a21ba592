"""Moments reduced over processes against those of one process that saw all samples."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import distributed_statistics as worker
from infoslice.distributed import all_reduce

SCRIPT = Path(worker.__file__)


@pytest.mark.parametrize("processes", [2, 3])
def test_any_share_of_the_samples_gives_the_moments_of_all(processes, tmp_path, assert_close):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
        str(processes), str(SCRIPT), str(tmp_path),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-3000:]
    for case, options in enumerate(worker.OPTIONS):
        whole = worker.measured(options, 0, sum(worker.COUNTS))
        expected = whole.state_dict()
        found = [torch.load(tmp_path / f"{case}-{rank}.pt") for rank in range(processes)]
        assert found[0].keys() == expected.keys()
        assert not any(key.startswith("never.") for key in expected)
        for key, value in expected.items():
            assert all(torch.equal(found[0][key], other[key]) for other in found), key
            if key.endswith("offset"):  # zero but for rounding
                scale = 3 * expected[f"{key.rpartition('.')[0]}.cluster_weight"]
                assert (value - found[0][key]).abs().max() < 1e-11 * scale
            else:
                assert_close(found[0][key], value, factor=1e4 if "third" in key else 100)
    texts = [(tmp_path / f"refused-{rank}").read_text() for rank in range(processes)]
    assert all("same layers" in text for text in texts)


def test_a_process_group_is_needed():
    with pytest.raises(RuntimeError, match="init_process_group"):
        all_reduce(worker.measured({}, 0, 1))
