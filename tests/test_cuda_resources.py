"""What the compiler made of the CUDA kernels: registers, memory, instructions; needs no GPU."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from infoslice import ops
from test_registry import cmake_list


def disassembler() -> Path | None:
    """cuobjdump of the CUDA toolkit, or of PyPI (with nvdisasm beside it)."""
    found = shutil.which("cuobjdump")
    spec = importlib.util.find_spec("nvidia")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        found = found or next(map(str, Path(folder).glob("cu*/bin/cuobjdump")), None)
    return Path(found) if found else None


CUOBJDUMP = disassembler()
pytestmark = [
    pytest.mark.skipif(not ops.build_info()["cuda"], reason="built without CUDA kernels"),
    pytest.mark.skipif(CUOBJDUMP is None, reason="no cuobjdump: pip install nvidia-cuda-cuobjdump"),
]

# Kernels that keep something in local memory: pattern of the name, bytes allowed, why.
IN_LOCAL_MEMORY = [
    (
        r"products_kernel.*TensorCoresI(f|NS_\d+b?float16E)Li128E",
        16,
        "all of 255 registers hold sums and operands: at most five words of counters and packed "
        "predicates go to memory, once in a stage of 16 or 32 samples",
    )
]

# Kernels that claim an instruction: pattern of the mangled name, architecture, instruction.
TENSOR_CORES = [
    (r"products_kernel.*TensorCoresI(f|NS)", "sm_90", "HMMA"),
    (r"products_kernel.*TensorCoresId", "sm_90", "DMMA"),
    (r"hopper_cu.*products_kernel", "sm_90a", "HGMMA"),
]


def cuobjdump(*options: str) -> str:
    assert CUOBJDUMP
    from infoslice import _cuda

    environment = {**os.environ, "PATH": f"{CUOBJDUMP.parent}{os.pathsep}{os.environ['PATH']}"}
    done = subprocess.run(
        [CUOBJDUMP, *options, _cuda.__file__],
        capture_output=True, text=True, check=True, timeout=120, env=environment,
    )  # fmt: skip
    return done.stdout


@pytest.fixture(scope="module")
def usage() -> dict[tuple[str, str], dict[str, int]]:
    """Registers and memory of every kernel: {(architecture, name): {"REG": 32, ...}}."""
    found, architecture = {}, ""
    text = cuobjdump("--dump-resource-usage")
    for line in re.findall(r"^arch = .*|^ Function .*\n.*", text, re.MULTILINE):
        if line.startswith("arch"):
            architecture = line.split()[2]
        else:
            name, numbers = re.fullmatch(r" Function (\S+):\n(.*)", line).groups()
            fields = re.findall(r"(\w+)(?:\[\d+\])?:(\d+)", numbers)
            found[architecture, name] = {key: int(value) for key, value in fields}
    return found


def test_every_body_is_there_for_every_architecture():
    listed = set(re.findall(r": (\w+)\..*?(sm_\w+)\.cubin", cuobjdump("--list-elf")))
    for architecture in ops.build_info()["cuda_architectures"]:
        for word in cmake_list("CUDA_OPS"):
            assert (word, f"sm_{architecture.removesuffix('-real')}") in listed


def test_nothing_spills(usage):
    """The registers that launch bounds leave are enough: no stack, no local memory."""
    wrong = []
    for (architecture, name), used in usage.items():
        allowed = max((size for form, size, _ in IN_LOCAL_MEMORY if re.search(form, name)),
                      default=0)  # fmt: skip
        if used["STACK"] + used["LOCAL"] > allowed:
            wrong.append(f"{architecture} {name}: stack {used['STACK']}, local {used['LOCAL']}")
    assert not wrong, "\n".join(wrong)


def test_static_shared_memory_fits_every_device(usage):
    # 48 KB are all that a kernel may have without asking, and 1 KB of those is the driver's.
    assert all(used["SHARED"] <= 49152 for used in usage.values())


@pytest.mark.parametrize(("form", "architecture", "instruction"), TENSOR_CORES)
def test_tensor_cores_are_used(usage, form, architecture, instruction):
    names = [name for there, name in usage if there == architecture and re.search(form, name)]
    if not names:
        pytest.skip(f"no such kernel was built for {architecture}")
    code = cuobjdump("-sass", "-arch", architecture, "-fun", ",".join(names))
    functions = dict(re.findall(r"Function : (\S+)\n(.*?)(?=Function : |\Z)", code, re.DOTALL))
    assert set(functions) == set(names)
    for name, body in functions.items():
        assert re.search(rf"\s{instruction}\.", body), name
