"""Make the files of one artifact: ``python -m speed.prepare WORKLOAD ARTIFACT FOLDER FP32 [--quick]``.

A process of its own for each, because the tools need several times the model in memory. In the folder lie
``MODEL/model.onnx`` or ``MODEL/model.xml`` for each model of the workload; "fp32" has the inputs as well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from speed.workloads import WORKLOADS, copies, linear_shape, split_case


def input_file(fp32: Path, case: str) -> Path:
    """Where the inputs of a case lie."""
    return fp32 / "inputs" / f"{case}.npz"


def prepare(workload: str, artifact: str, folder: Path, fp32: Path, quick: bool) -> None:
    """Write the files of ``artifact`` below ``folder``."""
    if artifact == "fp32":
        _write_inputs(workload, folder, quick)
    if artifact == "fp32" or artifact.startswith("ours-"):
        for model in WORKLOADS[workload].models:
            _export(workload, model, artifact, folder / model, quick)
        return
    from speed import peers

    for model in WORKLOADS[workload].models:
        source = fp32 / model / "model.onnx"
        case = next(case for case in WORKLOADS[workload].cases if split_case(case)[0] == model)
        inputs = dict(np.load(input_file(fp32, case)))
        (folder / model).mkdir(parents=True)
        peers.make(artifact, source, folder / model, inputs)


def _export(workload: str, model: str, artifact: str, folder: Path, quick: bool) -> None:
    from speed import models, ours
    from speed.replicate import replicate

    timed = WORKLOADS[workload]
    if timed.is_linear:
        module, call = models.build_linear(*linear_shape(model))
    else:
        module, call = models.build(workload, quick)
    if artifact != "fp32":
        variant = artifact.removeprefix("ours-").partition("-without-")[0]
        ours.compress(module, variant)
    path = ours.export(module, folder, call, fuse=ours.fused_rules(artifact))
    if timed.is_linear:
        replicate(path, copies(linear_shape(model), timed.max_copies, quick))


def _write_inputs(workload: str, folder: Path, quick: bool) -> None:
    """The tensors of one call for each case."""
    from ditpress.export.inputs import flatten
    from speed import models

    for case in WORKLOADS[workload].cases:
        model, rows = split_case(case)
        if rows is None:
            tensors, _ = flatten(models.build(workload, quick)[1])
        else:
            tensors = {"hidden_states": models.linear_input(linear_shape(model)[0], rows)}
        path = input_file(folder, case)
        path.parent.mkdir(parents=True, exist_ok=True)
        arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in tensors.items()}
        np.savez(path, **arrays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("artifact")
    parser.add_argument("folder", type=Path)
    parser.add_argument("fp32", type=Path)
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    prepare(args.workload, args.artifact, args.folder, args.fp32, args.quick)


if __name__ == "__main__":
    main()
