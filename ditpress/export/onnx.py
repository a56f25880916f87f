"""Export a denoising transformer to ONNX.

Always in two steps, ``torch.export`` with a dynamic batch and then ``torch.onnx``: the one-step form falls
back silently to captures with a fixed batch. The file is written to a temporary folder, compared with PyTorch
at two batch sizes, and only then moved into place.
"""

from __future__ import annotations

import contextlib
import json
import logging
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import onnx_ir as ir
import onnx_ir.passes.common as passes
import torch
from torch import Tensor, nn

from ditpress.errors import InputError, StageError
from ditpress.export.fixes import name_batch, repair, simplify, strip_metadata
from ditpress.export.functions import DOMAIN, OPSET, attach_functions, name_nodes
from ditpress.export.fuse import apply_rules, rule_names
from ditpress.export.inputs import OUTPUT_NAME, Keywords, Signature
from ditpress.export.openloop import compare_pieces, rounding_nodes
from ditpress.export.parity import Parity, cases, compare, relative_difference
from ditpress.export.session import CONSTANTS_KEY, MODEL_FILE, kernels_run, onnx_session, run_session
from ditpress.export.shorten import shorten
from ditpress.export.translation import TRANSLATIONS
from ditpress.files import atomic_folder
from ditpress.fused import unfused
from ditpress.kernels.linear import QuantizedLinear

Target = Literal["ditpress", "portable"]
# Above this the weights go into model.onnx.data, whose pages the kernels give back once they have repacked
# them; inside model.onnx they would stay in memory.
EXTERNAL_DATA_BYTES = 2**26
PARITY_BATCHES = (1, 3)  # neither is the batch of the trace
FUSION_BATCH = 2  # samples with rows of their own in modulation and gate
TRACE_BATCH = 2  # torch.export specialises 0 and 1
MAX_BATCH = 4096
PARITY_LIMIT = 1e-4  # of the output's range
IR_VERSION = 10  # the first with overloads of model-local functions


def export_transformer(
    transformer: nn.Module,
    folder: Path,
    calls: Sequence[Mapping[str, Any]],
    *,
    target: Target = "ditpress",
    external_data_bytes: int = EXTERNAL_DATA_BYTES,
    parity_limit: float = PARITY_LIMIT,
    fuse: bool | Collection[str] = True,
) -> tuple[Path, Parity]:
    """Write ``folder/model.onnx`` and ``config.json``, as optimum's ONNX pipelines have them in a component.

    Args:
        transformer: what to export, quantized layers as ``ditpress`` nodes. One that runs fused
            (:mod:`ditpress.fused`) is unfused meanwhile.
        folder: made or replaced as a whole when the file has been compared, never before.
        calls: keyword arguments of recorded calls, for the inputs and for the comparison with PyTorch.
        target: "ditpress" keeps our nodes, each with its model-local function; "portable" writes the
            functions out, so that the file holds standard and contrib operators only.
        external_data_bytes: total of weights above which they go into ``model.onnx.data``.
        parity_limit: allowed difference from PyTorch, as a part of the output's range.
        fuse: which rules of :data:`ditpress.export.fuse.RULES` put fused nodes into the file: all, none, or
            those named. The graph before is compared with PyTorch, the fused one with it. A portable file
            and a model without low-bit layers keep the standard operators.

    Returns:
        The path of ``folder/model.onnx`` and its agreement with PyTorch.

    Raises:
        InputError: an unknown target or fusion, calls that cannot be exported, no space left in ``folder``.
        StageError: the file does not compute what PyTorch computes.
    """
    if target not in ("ditpress", "portable"):
        raise InputError(f"unknown ONNX target {target!r}: expected 'ditpress' or 'portable'")
    if not calls:
        raise InputError("no recorded calls: ONNX export needs at least one to know the transformer's inputs")
    rules = rule_names(fuse)
    signature = Signature.of(calls[0])
    was_training = transformer.training
    transformer.eval()
    with contextlib.ExitStack() as stack:
        stack.enter_context(unfused(transformer))
        stack.callback(transformer.train, was_training)
        model = build_model(transformer, signature, calls[0])
        functions = target == "portable" or not kernels_run()
        with atomic_folder(folder) as temporary, _as_computed(transformer, functions):
            path = temporary / MODEL_FILE
            _save(model, path, external_data_bytes)
            (temporary / "config.json").write_text(_config_json(transformer), encoding="utf-8")
            rounds, pieces = bool(rounding_nodes(model)), None
            if target == "portable":
                if rounds:  # while its layers are still nodes, run by the functions that are written out next
                    pieces = compare_pieces(path, transformer, calls[0], PARITY_BATCHES, library=False)
                inline_functions(model)
                _save(model, path, external_data_bytes)
            known = cases(transformer, calls, PARITY_BATCHES)
            parity = compare(onnx_session(path), known)
            if rounds and pieces is None and not parity.relative <= parity_limit:
                pieces = compare_pieces(path, transformer, calls[0], PARITY_BATCHES)
            parity = replace(parity, pieces=pieces)
            _require(parity, parity_limit, folder)
            if target == "ditpress" and rules and any(node.domain == DOMAIN for node in model.graph):
                arguments = signature.arguments(calls[0], FUSION_BATCH)
                separate = _by_functions(path, arguments)
                if any(apply_rules(model, rules).values()):
                    _save(model, path, external_data_bytes)
                    fusion = relative_difference(_by_functions(path, arguments), separate)
                    parity = replace(compare(onnx_session(path), known), pieces=pieces, fusion=fusion)
                    _require(parity, parity_limit, folder)
    return folder / MODEL_FILE, parity


@contextlib.contextmanager
def _as_computed(transformer: nn.Module, functions: bool) -> Iterator[None]:
    """PyTorch's numbers as the file's own functions give them: with group scales that nothing folds."""
    folded = [m for m in transformer.modules() if isinstance(m, QuantizedLinear) and m.fold_scales]
    for module in folded if functions else []:
        module.fold_scales = False
    try:
        yield
    finally:
        for module in folded:
            module.fold_scales = True


def _require(parity: Parity, limit: float, folder: Path) -> None:
    if not parity.holds(limit):
        remedy = "" if parity.fusion is None else "; fuse=False exports without fused nodes"
        raise StageError(f"ONNX differs from PyTorch: {parity}; no file was written to {folder}{remedy}")


def _by_functions(path: Path, arguments: Mapping[str, Tensor]) -> Tensor:
    """The output without our kernels, operator by operator.

    Nothing is left to the runtime's own rewriting, so that fused and unfused graphs differ in nothing but the
    order of equal operations, and roundings to int8 fall equally.
    """
    return run_session(onnx_session(path, library=False, optimize=False), arguments)


def build_model(transformer: nn.Module, signature: Signature, call: Mapping[str, Any]) -> ir.Model:
    """Trace ``transformer`` and return the finished graph. Its initialisers share memory with the module."""
    arguments = signature.arguments(call, batch=TRACE_BATCH)
    batch = torch.export.Dim("batch", min=1, max=MAX_BATCH)
    shapes = tuple({0: batch} if name in signature.batched else {} for name in signature.tensors)
    with torch.no_grad(), warnings.catch_warnings(), _quiet_exporter():
        warnings.simplefilter("ignore")  # the exporter's own deprecations
        exported = torch.export.export(
            Keywords(transformer, signature),
            tuple(arguments[name] for name in signature.tensors),
            strict=False,
            dynamic_shapes=(shapes,),
        )
        program = torch.onnx.export(
            exported,
            dynamo=True,
            opset_version=OPSET,
            input_names=list(signature.tensors),
            output_names=[OUTPUT_NAME],
            custom_translation_table=TRANSLATIONS,
            optimize=False,
            verbose=False,
        )
    if program is None:
        raise StageError("torch.onnx returned no program")
    model: ir.Model = program.model
    model.ir_version = max(model.ir_version or 0, IR_VERSION)
    name_nodes(model, Keywords.MODULE)
    simplify(model)
    repair(model)
    shorten(model)
    passes.RemoveUnusedNodesPass()(model)
    attach_functions(model)
    name_batch(model, signature.batched)
    passes.NameFixPass()(model)
    strip_metadata(model)
    model.metadata_props[CONSTANTS_KEY] = json.dumps(signature.constants, sort_keys=True)
    return model


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """No lines about torchvision's operators, which the exporter would register if it were installed."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def inline_functions(model: ir.Model) -> None:
    """Write the functions of the ``ditpress`` nodes out in place: standard and contrib operators remain."""
    simplify(model)
    passes.NameFixPass()(model)
    strip_metadata(model)


def _config_json(transformer: nn.Module) -> str:
    """The transformer's config without what belongs to the PyTorch checkpoint or to this machine."""
    config = (
        json.loads(cast(Any, transformer).to_json_string()) if hasattr(transformer, "to_json_string") else {}
    )
    return json.dumps(
        {key: value for key, value in config.items() if key not in ("_name_or_path", "quantization_config")},
        indent=2,
        sort_keys=True,
    )


def _save(model: ir.Model, path: Path, external_data_bytes: int) -> None:
    total = sum(value.const_value.nbytes for value in model.graph.initializers.values() if value.const_value)
    ir.save(model, path, external_data=f"{MODEL_FILE}.data" if total > external_data_bytes else None)
