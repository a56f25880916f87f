"""Transformers and exports that several tests share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from diffusers import DiTTransformer2DModel
from export_models import make_calls, make_dit, make_quantized

from ditpress.export.onnx import Target, export_transformer


@pytest.fixture
def dit() -> DiTTransformer2DModel:
    return make_dit()


@pytest.fixture
def calls() -> list[dict[str, Any]]:
    return make_calls()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, Any]]:
    """``exported(format, group, activation, target)``: path and module, made once: do not change them.

    Format "float" is the plain DiT. Nothing is fused.
    """

    @functools.cache
    def export(
        format: str = "int4", group: int | None = 32, activation: str = "int8", target: Target = "ditpress"
    ) -> tuple[Path, Any]:
        model = make_dit() if format == "float" else make_quantized(format, group, activation)
        folder = tmp_path_factory.mktemp("onnx")
        model.register_to_config(quantization_config={"quant_method": "ditpress"}, _name_or_path=str(folder))
        path, _ = export_transformer(model, folder / "transformer", make_calls(), target=target, fuse=False)
        return path, model

    return export
