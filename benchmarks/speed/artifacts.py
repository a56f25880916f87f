"""Prepared files, made when they are needed and kept until what made them changes."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import ditpress
from ditpress.files import free_bytes, sha256_file
from speed.hardware import one_per_core
from speed.processes import Failed, environment, reason
from speed.workloads import Workload, copies, linear_shape

RECORD = "prepared.json"
PREPARE_SECONDS = 7200
DISK_RESERVE = 8 * 10**9  # the fp32 file of DiT-XL/2 and what its tools write beside it
_HERE = Path(__file__).resolve().parent


class Artifacts:
    """The files of one workload.

    Args:
        root: folder of all of them.
        workload: whose.
        quick: of the small variant, kept apart.
    """

    def __init__(self, root: Path, workload: Workload, quick: bool) -> None:
        self.workload, self.quick = workload, quick
        self.folder = root / (workload.source + ("-quick" if quick else ""))
        self._failed: dict[str, str] = {}

    @property
    def inputs(self) -> Path:
        """Folder with the inputs of each case."""
        return self.folder / "fp32" / "inputs"

    def path(self, artifact: str) -> Path:
        """The folder of ``artifact``, made now where it is missing or out of date.

        Raises:
            Failed: it cannot be made, with the reason; nothing is tried twice.
        """
        if artifact in self._failed:
            raise Failed(self._failed[artifact])
        folder = self.folder / artifact
        try:
            key = self._key(artifact)
            if _record(folder).get("key") != key:
                self._make(artifact, folder, key)
        except Failed as error:
            self._failed[artifact] = str(error)
            raise
        return folder

    def bytes(self, artifact: str) -> int:
        """Size of all its models; of linears for one copy each."""
        sizes = _record(self.folder / artifact)["bytes"]
        return sum(size // self.copies(model) for model, size in sizes.items())

    def loaded_bytes(self, artifact: str) -> int:
        """Size of its files as they lie there."""
        return sum(_record(self.folder / artifact)["bytes"].values())

    def copies(self, model: str) -> int:
        """How often a linear stands in its file; 1 for whole models."""
        if not self.workload.is_linear:
            return 1
        return copies(linear_shape(model), self.workload.max_copies, self.quick)

    def _key(self, artifact: str) -> dict[str, Any]:
        """What the files depend on."""
        key: dict[str, Any] = {
            "copies": {model: self.copies(model) for model in self.workload.models},
            "cases": list(self.workload.cases),
        }
        if artifact == "fp32" or artifact.startswith("ours-"):
            sources = [_HERE / "models.py", _HERE / "replicate.py"]
            sources += [_HERE / "ours.py"] * artifact.startswith("ours-")
            package = Path(ditpress.__file__).parent
            for room in ("kernels", "load", "compress", "export"):
                sources += sorted((package / room).rglob("*.py"))
            return key | {"sources": _digest(sources), **_versions("torch", "diffusers", "onnxscript")}
        self.path("fp32")
        tools = _versions("onnxruntime", "onnx", "openvino", "nncf")
        fp32 = _record(self.folder / "fp32")["sha256"]
        return key | {"sources": _digest([_HERE / "peers.py", _HERE / "replicate.py"]), "fp32": fp32, **tools}

    def _make(self, artifact: str, folder: Path, key: dict[str, Any]) -> None:
        print(f"  preparing {artifact}", flush=True)
        self.folder.mkdir(parents=True, exist_ok=True)
        if free_bytes(self.folder) < DISK_RESERVE and not self.quick:
            raise Failed(f"less than {DISK_RESERVE / 1e9:.0f} GB are free on the disk of {self.folder}")
        work = self.folder / f".{artifact}"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        fp32 = work if artifact == "fp32" else self.folder / "fp32"
        command = [sys.executable, "-P", "-m", "speed.prepare", self.workload.source, artifact, work, fp32]
        log = self.folder / f"{artifact}.log"
        with log.open("w", encoding="utf-8", errors="replace") as output:
            status = _run([*map(str, command), *["--quick"] * self.quick], output)
        if status:
            shutil.rmtree(work, ignore_errors=True)
            raise Failed(reason(log.read_text(encoding="utf-8", errors="replace"), status))
        files = {
            model: sorted(path for path in (work / model).iterdir() if path.name.startswith("model."))
            for model in self.workload.models
        }
        record: dict[str, Any] = {
            "key": key,
            "bytes": {model: sum(path.stat().st_size for path in paths) for model, paths in files.items()},
        }
        if artifact == "fp32":
            record["sha256"] = [sha256_file(path) for paths in files.values() for path in paths]
        (work / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        work.rename(folder)


def _run(command: list[str], output: Any) -> int:
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        env=environment(len(one_per_core())),
    )
    try:
        return process.wait(PREPARE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise Failed(f"not prepared after {PREPARE_SECONDS} s") from None
    except BaseException:
        process.kill()
        process.wait()
        raise


def _record(folder: Path) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def _digest(paths: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in paths:
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _versions(*names: str) -> dict[str, str]:
    return {name: version_of(name) for name in names}


def version_of(name: str) -> str:
    """Version of an installed distribution, or "not installed"."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
