"""diffusers knows `ditquant` checkpoints once this module is imported: `from_pretrained` needs nothing else.

A quantized model's config.json holds its plan; the tensors are ordinary integer tensors in the safetensors files.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from torch import nn

from ditquant.errors import DitQuantError, damaged
from ditquant.integrations import checksums
from ditquant.integrations.attention import attend_as_saved, stop_attending
from ditquant.integrations.checksums import Checksums
from ditquant.integrations.config import DitQuantConfig
from ditquant.integrations.guards import guard, unguard
from ditquant.integrations.load import build_layers, check_layers, check_words, keep_blocks_whole, word_dtypes
from ditquant.integrations.state_dict import StateDict, hook, stumbling_block, unhook
from ditquant.nn import dequantize_model
from ditquant.specs import QuantPlan

__all__ = ["DitQuantConfig", "DitQuantizer", "mark_quantized", "transformers_of"]


class DitQuantizer(DiffusersQuantizer):
    """Swaps the layers of a plan in before their tensors are loaded, or quantizes weights as they arrive."""

    required_packages = ("ditquant",)
    use_keep_in_fp32_modules = True

    def __init__(self, quantization_config: DitQuantConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self._on_the_fly = None
        self._checksums: Checksums | None = None
        self._dtype: torch.dtype | None = None
        self._words: dict[str, torch.dtype] = {}
        self._folder: Path | None = None

    def update_torch_dtype(self, torch_dtype: torch.dtype | None) -> torch.dtype | None:
        """Note the dtype that the model will have."""
        self._dtype = torch_dtype
        return torch_dtype

    def validate_environment(self, device_map: Any = None, **kwargs: Any) -> None:
        """Refuse what cannot be loaded; diffusers asks again when the device map is known."""
        if self.quantization_config.plan is None and isinstance(device_map, Mapping) and "disk" in device_map.values():
            raise DitQuantError(
                "quantizing while loading cannot offload to disk. "
                "Quantize without a device_map, save the model, and load it with one."
            )

    def maybe_update_loaded_keys(self, loaded_keys: list[str], checkpoint_files: list[str]) -> list[str]:
        """Read the checksums of a quantized checkpoint, and note where it lies."""
        if checkpoint_files:
            self._folder = Path(str(checkpoint_files[0])).parent
        if self.pre_quantized:
            self._checksums = Checksums.read(checkpoint_files, self.quantization_config.checksums)
        if self._checksums is not None:
            self._checksums.check_names(loaded_keys, self.quantization_config.plan)
        block = stumbling_block(self.quantization_config.plan) if self.pre_quantized else {}
        return [key for key in loaded_keys if key not in block]

    def _process_model_before_weight_loading(self, model: ModelMixin, **kwargs: Any) -> None:
        config = self.quantization_config
        keep_blocks_whole(model)
        if self._checksums is not None:
            self._checksums.check_config(model)
        if config.plan is not None:
            build_layers(model, config.plan, self._dtype)
            self._words = word_dtypes(model)
        else:
            from ditquant.integrations.on_the_fly import OnTheFly  # quantizing is not part of loading

            self._on_the_fly = OnTheFly(model, config.recipe, config.modules_to_not_convert)

    def maybe_update_state_dict(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Compare tensors as they were read."""
        if self._checksums is not None:
            self._checksums.check_tensors(state_dict)
        check_words(self._words, state_dict)
        return state_dict

    def check_if_quantized_param(self, model, param_value, param_name, state_dict, **kwargs: Any) -> bool:
        """Say whether a tensor that arrives has to be quantized."""
        return self._on_the_fly is not None and self._on_the_fly.wants(param_name)

    def create_quantized_param(
        self, model, param_value, param_name, target_device, state_dict, unexpected_keys=None, **kwargs: Any
    ) -> None:
        """Quantize a weight that arrives, in the dtype that it would have had in the model."""
        self._on_the_fly.quantize(model, param_name, param_value, target_device)

    def update_missing_keys(self, model, missing_keys: list[str], prefix: str) -> list[str]:
        """Refuse a quantized checkpoint without all tensors: what is missing would be left empty."""
        if missing_keys and self.pre_quantized:
            raise damaged(f"tensor {min(missing_keys)!r} is missing")
        return missing_keys

    def _process_model_after_weight_loading(self, model: ModelMixin, **kwargs: Any) -> ModelMixin:
        if self._on_the_fly is not None:
            self.quantization_config.plan = self._on_the_fly.finish(model)
        if self._checksums is not None:
            self._checksums.check_complete()
        self._on_the_fly = self._checksums = None
        self._words = {}
        check_layers(model)
        attention = self.quantization_config.plan.attention
        if attention is not None and self.pre_quantized:
            if self._folder is None:
                raise DitQuantError("this diffusers does not say where the attention plan lies. Update diffusers.")
            attend_as_saved(model, self._folder, dict(attention))
        mark_quantized(model, self.quantization_config.plan, self)
        return model

    def get_state_dict_and_metadata(
        self, state_dict: StateDict, safe_serialization: bool = False
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """Return what is saved, and the checksums for the header."""
        if not safe_serialization:
            raise DitQuantError("quantized models are saved as safetensors. Leave safe_serialization=True.")
        plan = self.quantization_config.plan
        tensors = dict(state_dict) | stumbling_block(plan)
        return tensors, {checksums.KEY: checksums.describe(state_dict.model, tensors, plan)}

    def _dequantize(self, model: ModelMixin) -> ModelMixin:
        """Replace every quantized layer by an nn.Linear of its decoded weight."""
        dequantize_model(model)
        stop_attending(model)
        unguard(model)
        unhook(model)
        model._internal_dict = FrozenDict({k: v for k, v in model.config.items() if k != "quantization_config"})
        model.quantization_method = None
        return model

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def mark_quantized(model: nn.Module, plan: QuantPlan, quantizer: DitQuantizer | None = None) -> None:
    """Make a model whose layers were swapped one that diffusers saves and loads as quantized, and guard it."""
    if plan.layers:
        guard(model)
    if not isinstance(model, ModelMixin):
        return
    hook(model)
    config = DitQuantConfig(plan=plan)
    # diffusers reads it to refuse casts, which words withstand and `from_pipe` needs, and fusing, which is guarded
    model.is_quantized = False
    model.quantization_method = config.quant_method
    model.hf_quantizer = quantizer or DitQuantizer(config, pre_quantized=True)
    model.register_to_config(quantization_config=config)


def transformers_of(model: Any) -> dict[str, nn.Module]:
    """Return the modules to quantize by component name: a pipeline's transformers, or the module itself as "".

    Raises:
        DitQuantError: neither a module nor a pipeline with a transformer.
    """
    if isinstance(model, nn.Module):
        return {"": model}
    components = getattr(model, "components", None)
    if not isinstance(components, Mapping):
        raise DitQuantError(f"cannot quantize a {type(model).__name__}. Pass a diffusers pipeline or a torch module.")
    found = {n: c for n, c in components.items() if isinstance(c, nn.Module) and n.split("_")[0] == "transformer"}
    if not found:
        parts = ", ".join(n for n, c in components.items() if isinstance(c, nn.Module)) or "none"
        raise DitQuantError(
            f"{type(model).__name__} has no transformer (its modules: {parts}). "
            "To quantize one of them pass it alone, with forward= to calibrate."
        )
    return found


AUTO_QUANTIZER_MAPPING["ditquant"] = DitQuantizer
AUTO_QUANTIZATION_CONFIG_MAPPING["ditquant"] = DitQuantConfig
