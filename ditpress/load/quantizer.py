"""Teaches diffusers' ``from_pretrained`` and ``save_pretrained`` our layers.

Diffusers has no public hook for a new method: two dictionaries take it.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers import auto
from diffusers.quantizers.base import DiffusersQuantizer
from torch import Tensor, nn

from ditpress.errors import InputError
from ditpress.kernels.buffers import FixedBuffers
from ditpress.kernels.linear import QuantizedLinear
from ditpress.kernels.wrap import wrap_empty
from ditpress.load.anatomy import tie_shared
from ditpress.load.quantization_config import DitpressConfig, Method, inside
from ditpress.load.widths import resize


class DitpressQuantizer(DiffusersQuantizer):
    """Builds the skeleton with our layers before diffusers fills it; leaves out copies of shared tensors."""

    use_keep_in_fp32_modules = False
    plain = False  # save what diffusers reads without ditpress

    def validate_environment(self, *args: Any, **kwargs: Any) -> None:
        if not self.pre_quantized:
            raise InputError(
                "a float model cannot be quantized while it loads; use a recipe, as in: ditpress w4a8"
            )

    def update_missing_keys(self, model: nn.Module, missing_keys: list[str], prefix: str) -> list[str]:
        copies = self._copies()
        return [key for key in missing_keys if not any(inside(key, name) for name in copies)]

    def check_if_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        state_dict: dict[str, Any],
        **kwargs: Any,
    ) -> bool:
        return isinstance(model.get_submodule(param_name.rpartition(".")[0]), FixedBuffers)

    def check_quantized_param_shape(
        self, param_name: str, current_param: Tensor, loaded_param: Tensor
    ) -> bool:
        raise InputError(
            f"{param_name}: shape {tuple(loaded_param.shape)} in the file, {tuple(current_param.shape)} by "
            "config.json; weights and config do not belong together"
        )

    def create_quantized_param(
        self,
        model: nn.Module,
        param_value: Tensor,
        param_name: str,
        target_device: torch.device | str,
        state_dict: dict[str, Any],
        unexpected_keys: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        layer, _, buffer = param_name.rpartition(".")
        # Diffusers has cast param_value to the dtype of the model; the dtype of our buffers is their format.
        module = model.get_submodule(layer)
        expected = getattr(module, buffer)
        value = state_dict[param_name]
        if value.dtype != expected.dtype:
            raise InputError(
                f"{param_name}: stored as {value.dtype}, expected {expected.dtype}; save the model again"
            )
        setattr(module, buffer, value.to(target_device))

    def get_state_dict_and_metadata(
        self, state_dict: dict[str, Any], safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        if self.plain:
            return _plain_state(state_dict), {}
        copies, config = self._copies(), self.quantization_config
        fixed = {*config.layers, *config.wrappers, *(f"{name}.transform" for name in config.wrappers)}
        kept = {
            key: value if key.rpartition(".")[0] in fixed else _lossless_half(value)
            for key, value in state_dict.items()
            if not any(inside(key, name) for name in copies)
        }
        return kept, {}

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        resize(model, self.quantization_config.pruned)
        wrappers = self.quantization_config.wrappers
        for name in sorted(wrappers, key=lambda name: name.count(".")):  # the outer ones first
            with init_empty_weights():
                wrapped = wrap_empty(_linear(model, name), wrappers[name])
            _put(model, name, wrapped)
        for name, layer in self.quantization_config.layers.items():
            linear = _linear(model, name)
            with init_empty_weights(include_buffers=True):
                quantized = QuantizedLinear.empty(
                    linear.in_features, linear.out_features, **layer, bias=linear.bias is not None
                )
            _put(model, name, quantized)
        for names in self.quantization_config.shared:
            for name in names:
                _submodule(model, name)
        tie_shared(model, self.quantization_config.shared)

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        return model

    def _dequantize(self, model: Any) -> Any:
        """Every QuantizedLinear becomes a float32 ``nn.Linear``; wrappers stay; embedders stay tied."""
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedLinear):
                _put(model, name, _float_linear(module))
        # Diffusers leaves the label in the config, and would then save float weights as quantized ones.
        config = DitpressConfig.of(model)
        if config.changed:
            model.register_to_config(quantization_config=config.to_dict())
        else:  # None would not do: diffusers cannot save a config that holds it
            rest = {key: value for key, value in model.config.items() if key != "quantization_config"}
            model._internal_dict = FrozenDict(rest)
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False

    def _copies(self) -> list[str]:
        return [name for names in self.quantization_config.shared for name in names[1:]]


def label(transformer: Any, *, plain: bool = False) -> None:
    """Note in ``transformer`` what is quantized and shared: its ``save_pretrained`` then writes it right.

    With ``plain`` a float model without wrappers, of the widths of its class, is written as diffusers alone
    writes and reads it: shared tensors under each of their names, all in one dtype, nothing in the config.
    """
    config = DitpressConfig.of(transformer)
    quantizer = DitpressQuantizer(config)
    quantizer.plain = plain and not config.changed
    transformer.register_to_config(quantization_config={} if quantizer.plain else config.to_dict())
    transformer.hf_quantizer = quantizer


def register_quantizer() -> None:
    """Let ``from_pretrained`` understand ``quant_method: ditpress``."""
    auto.AUTO_QUANTIZER_MAPPING[Method.DITPRESS.value] = DitpressQuantizer
    auto.AUTO_QUANTIZATION_CONFIG_MAPPING[Method.DITPRESS.value] = DitpressConfig


def _lossless_half(value: Tensor) -> Tensor:
    """float16 where it holds every value exactly, as for a checkpoint that came so; else unchanged."""
    if value.dtype != torch.float32:
        return value
    half = value.half()
    return half if torch.equal(half.float(), value) else value


def _plain_state(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Every tensor in memory of its own; in float16 if that holds all of them exactly."""
    halves = {key: _lossless_half(value) for key, value in state_dict.items()}
    exact = all(value.dtype == torch.float16 for value in halves.values() if value.is_floating_point())
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for key, value in (halves if exact else state_dict).items():
        kept[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return kept


def _submodule(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise InputError(
            f"config.json: {name} is not in {type(model).__name__}; it belongs to another model"
        ) from error


def _linear(model: nn.Module, name: str) -> nn.Linear:
    linear = _submodule(model, name)
    if not isinstance(linear, nn.Linear):
        raise InputError(
            f"config.json: {name} is a {type(linear).__name__}, expected a linear; it is damaged"
        )
    return linear


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def _float_linear(quantized: QuantizedLinear) -> nn.Linear:
    linear = nn.Linear(
        quantized.in_features, quantized.out_features, bias=quantized.bias is not None, device="meta"
    )
    linear.weight = nn.Parameter(quantized.dequantize(), requires_grad=False)
    if quantized.bias is not None:
        linear.bias = nn.Parameter(quantized.bias.clone(), requires_grad=False)
    return linear
