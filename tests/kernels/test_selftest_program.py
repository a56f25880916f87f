"""The C++ self-test: every instruction set on odd shapes, under sanitizers and, for AArch64, emulated."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from qlinear_cases import supported_paths

ROOT = Path(__file__).parents[2]
SEARCH = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
CMAKE, NINJA = shutil.which("cmake", path=SEARCH), shutil.which("ninja", path=SEARCH)
COMPILER = os.environ.get("CXX") or next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
CROSS = shutil.which("aarch64-linux-gnu-g++")
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")

pytestmark = [
    pytest.mark.skipif(CMAKE is None, reason="no cmake here"),
    pytest.mark.skipif(sys.platform == "win32", reason="the program needs mmap"),
]


def build(folder: Path, *options: str) -> Path:
    """Configure and build the program in an empty folder."""
    assert CMAKE is not None
    generator = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={NINJA}"] if NINJA else []
    configure = [CMAKE, "-S", str(ROOT), "-B", str(folder), "-DDITPRESS_SELFTEST=ON", *generator, *options]
    compile_ = [CMAKE, "--build", str(folder), "--target", "ditpress_selftest", "--parallel", "2"]
    for command in (configure, compile_):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stdout + result.stderr
    return folder / "tests" / "kernels" / "cpp" / "ditpress_selftest"


def run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def has_sanitizers(folder: Path) -> bool:
    source = folder / "probe.cc"
    source.write_text("int main() { return 0; }\n")
    command = [str(COMPILER), "-fsanitize=address,undefined", str(source), "-o", str(folder / "probe")]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler here")
def test_every_path_under_sanitizers(tmp_path: Path) -> None:
    if not has_sanitizers(tmp_path):
        pytest.skip(f"{COMPILER} cannot link with -fsanitize=address,undefined")
    program = build(
        tmp_path / "build",
        f"-DCMAKE_CXX_COMPILER={COMPILER}",
        "-DDITPRESS_SANITIZE=address;undefined",
    )
    output = run(str(program), "portable", *supported_paths())
    assert "portable: " in output


@pytest.mark.skipif(CROSS is None, reason="no aarch64-linux-gnu-g++ here")
@pytest.mark.skipif(QEMU is None, reason="no qemu-aarch64 here")
def test_neon_under_an_emulator(tmp_path: Path) -> None:
    program = build(
        tmp_path,
        "-DCMAKE_SYSTEM_NAME=Linux",
        "-DCMAKE_SYSTEM_PROCESSOR=aarch64",
        f"-DCMAKE_CXX_COMPILER={CROSS}",
        "-DCMAKE_EXE_LINKER_FLAGS=-static",
    )
    assert "neon: " in run(str(QEMU), str(program), "neon", "portable")
