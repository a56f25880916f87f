"""Who takes part: ours and the peers, as data."""

from __future__ import annotations

from dataclasses import dataclass

RULES = ("norm", "gelu", "gate", "merge", "attention", "columns")  # rewrite rules of the export, by name


@dataclass(frozen=True)
class Contestant:
    """One way to run a model.

    Attributes:
        name: in results.json.
        label: in the tables.
        engine: "onnxruntime", "openvino" or "torch".
        artifact: which prepared files it loads; None: torch builds the model itself.
        ours: whether ditpress made it.
        library: whether our kernels are registered in ONNX Runtime.
        model: what the torch engine makes of the float model: "bf16" or a name in ``ours.FORMATS``.
        options: properties of OpenVINO's ``compile_model``.
        variant: of several contestants of one name only the fastest here takes part, so that no peer is shown
            in a worse setting than it has.
    """

    name: str
    label: str
    engine: str
    artifact: str | None
    ours: bool = False
    library: bool = False
    model: str | None = None
    options: tuple[tuple[str, str], ...] = ()
    variant: str = ""


def _ours(name: str, label: str) -> Contestant:
    return Contestant(f"ours-{name}", label, "onnxruntime", f"ours-{name}", ours=True, library=True)


def _ours_torch(name: str, label: str) -> Contestant:
    return Contestant(f"ours-{name}-torch", label, "torch", None, ours=True, model=name)


def _openvino(
    name: str, label: str, artifact: str, precisions: tuple[str, ...], group: str | None = None, tag: str = ""
) -> list[Contestant]:
    """One contestant for each precision of what is not integer: bf16 is faster on most CPUs, not everywhere
    with every weight format."""
    dynamic = (("DYNAMIC_QUANTIZATION_GROUP_SIZE", group),) if group else ()
    return [
        Contestant(
            f"openvino-{name}",
            label,
            "openvino",
            artifact,
            options=(("INFERENCE_PRECISION_HINT", precision), *dynamic),
            variant=f"{tag}{precision}" if len(precisions) > 1 else "",
        )
        for precision in precisions
    ]


OURS = (
    _ours("w4a8", "ditpress W4A8 g64"),
    _ours("w4a8-exact", "ditpress W4A8 g64, exact group scales"),
    _ours("w8a8", "ditpress W8A8"),
    _ours("fp4", "ditpress FP4 (e2m1) A8 g64"),
    _ours("ternary", "ditpress ternary A8"),
    _ours("vq", "ditpress VQ 256×4 A8"),
)
OURS_TORCH = (_ours_torch("w4a8", "ditpress W4A8 g64 in PyTorch"),)
OURS_TORCH_LINEAR = tuple(
    _ours_torch(kind.name.removeprefix("ours-"), f"{kind.label}, op in PyTorch") for kind in OURS
)

_BOTH = ("f32", "bf16")
PEERS = (
    Contestant("onnxruntime-fp32", "ONNX Runtime fp32", "onnxruntime", "fp32"),
    Contestant("onnxruntime-int8", "ONNX Runtime dynamic int8", "onnxruntime", "onnxruntime-int8"),
    Contestant(
        "onnxruntime-nbits", "ONNX Runtime MatMulNBits 4 bit g128", "onnxruntime", "onnxruntime-nbits"
    ),
    *_openvino("f32", "OpenVINO f32", "openvino-f32", ("f32",)),
    *_openvino("bf16", "OpenVINO bf16", "openvino-f32", ("bf16",)),
    *_openvino("int8", "OpenVINO INT8 weights", "openvino-int8", _BOTH, "128"),
    *_openvino("int4", "OpenVINO INT4 g128", "openvino-int4", _BOTH, "128"),
    *_openvino("w8a8", "OpenVINO W8A8 static", "openvino-w8a8-mixed", _BOTH, tag="mixed, "),
    *_openvino("w8a8", "OpenVINO W8A8 static", "openvino-w8a8-performance", _BOTH, tag="performance, "),
    Contestant("torch-bf16", "PyTorch bf16", "torch", None, model="bf16"),
)

FUSIONS = (
    *(_ours(f"w4a8-without-{rule}", f"without {rule}") for rule in RULES),
    _ours("w4a8-without-all", "without all"),
)


def contestants_of(kind: str, linear: bool) -> tuple[Contestant, ...]:
    """Those of a workload's ``contestants``, the baseline first."""
    if kind == "fusions":
        return (OURS[0], *FUSIONS)
    return (*OURS, *(OURS_TORCH_LINEAR if linear else OURS_TORCH), *PEERS)


def names_of(contestants: tuple[Contestant, ...]) -> dict[str, list[Contestant]]:
    """Contestants by name, each with its variants, in order."""
    found: dict[str, list[Contestant]] = {}
    for contestant in contestants:
        found.setdefault(contestant.name, []).append(contestant)
    return found
