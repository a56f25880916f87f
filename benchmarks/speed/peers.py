"""What the peers make of the fp32 ONNX file, each with its own tool."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

GROUP = 128
CALIBRATION_SAMPLES = 4  # weights are random: any activation ranges will do
EXTERNAL_DATA_BYTES = 10**9


def make(artifact: str, source: Path, folder: Path, inputs: Mapping[str, np.ndarray]) -> None:
    """Write ``folder/model.onnx`` or ``folder/model.xml``.

    Args:
        artifact: as in ``contestants``.
        source: the fp32 ONNX file.
        inputs: of one call, for calibration.
    """
    if artifact == "onnxruntime-int8":
        _dynamic_int8(source, folder / "model.onnx")
    elif artifact == "onnxruntime-nbits":
        _matmul_nbits(source, folder / "model.onnx")
    else:
        _openvino(artifact.removeprefix("openvino-"), source, folder / "model.xml", inputs)


def _dynamic_int8(source: Path, target: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    # Only MatMul: with the patch embedding as ConvInteger the model would get slower.
    quantize_dynamic(
        _with_matmul(source),
        target,
        op_types_to_quantize=["MatMul"],
        per_channel=True,
        weight_type=QuantType.QInt8,
        use_external_data_format=_bytes(source) > EXTERNAL_DATA_BYTES,
    )


def _matmul_nbits(source: Path, target: Path) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        _with_matmul(source), bits=4, block_size=GROUP, is_symmetric=True, accuracy_level=4
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), _bytes(source) > EXTERNAL_DATA_BYTES)


def _with_matmul(source: Path) -> Any:
    """The model with MatMul and Add for Gemm, as the modulation linears are: both quantizers know MatMul."""
    import onnx
    from onnxruntime.quantization.onnx_model import ONNXModel

    model = ONNXModel(onnx.load(source))
    model.replace_gemm_with_matmul()
    del model.model.graph.value_info[:]  # shapes of weights that are transposed now
    return model.model


def _openvino(kind: str, source: Path, target: Path, inputs: Mapping[str, np.ndarray]) -> None:
    import openvino

    model: Any = openvino.Core().read_model(source)
    if kind != "f32":
        model = _compressed(kind, model, inputs)
    openvino.save_model(model, target, compress_to_fp16=False)


def _compressed(kind: str, model: Any, inputs: Mapping[str, np.ndarray]) -> Any:
    """NNCF's form of an OpenVINO model."""
    import nncf

    from speed.replicate import input_name

    modes = nncf.CompressWeightsMode
    if kind == "int8":
        return nncf.compress_weights(model, mode=modes.INT8_SYM)
    if kind == "int4":
        return nncf.compress_weights(model, mode=modes.INT4_SYM, group_size=GROUP, all_layers=True)
    if not kind.startswith("w8a8-"):
        raise ValueError(f"openvino-{kind}: no such artifact")
    call = {port.any_name: inputs[input_name(port.any_name)] for port in model.inputs}
    return nncf.quantize(
        model,
        nncf.Dataset([call] * CALIBRATION_SAMPLES),
        subset_size=CALIBRATION_SAMPLES,
        model_type=nncf.ModelType.TRANSFORMER,
        preset=nncf.QuantizationPreset(kind.removeprefix("w8a8-")),
    )


def _bytes(source: Path) -> int:
    return sum(path.stat().st_size for path in source.parent.glob("model.onnx*"))
