"""diffusers knows `ditquant` checkpoints once this module is imported: `from_pretrained` needs nothing else.

A quantized model's config.json holds its plan; the tensors are ordinary integer tensors in the safetensors files.
"""

from collections.abc import Mapping
from enum import Enum
from functools import partial
from typing import Any

from diffusers import ModelMixin
from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin
from torch import nn

from ditquant.errors import DitQuantError
from ditquant.integrations.load import build_layers, check_layers
from ditquant.specs import QuantPlan


class QuantMethod(str, Enum):
    """diffusers reads the method's name from an enum member."""

    DITQUANT = "ditquant"


class DitQuantConfig(QuantizationConfigMixin):
    """What `from_pretrained` is told: the plan of a quantized checkpoint, or a recipe to apply while loading.

    A recipe runs data-free, as the weights arrive. `modules_to_not_convert` lists full layer names, globs or `re:`
    patterns that stay in floating point.
    """

    def __init__(
        self,
        recipe: str | Mapping[str, Any] | None = None,
        plan: QuantPlan | Mapping[str, Any] | None = None,
        modules_to_not_convert: list[str] | None = None,
        quant_method: str = QuantMethod.DITQUANT,
    ):
        if (recipe is None) == (plan is None):
            raise DitQuantError("a ditquant configuration needs a recipe (to quantize while loading) or a plan.")
        if str(getattr(quant_method, "value", quant_method)) != "ditquant":
            raise DitQuantError(f"quant_method {quant_method!r} is not 'ditquant'.")
        self.quant_method = QuantMethod.DITQUANT
        self.recipe = recipe
        self.plan = plan if plan is None or isinstance(plan, QuantPlan) else QuantPlan.from_dict(plan)
        self.modules_to_not_convert = list(modules_to_not_convert or ())

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json stores: the plan."""
        if self.plan is None:
            return {
                "quant_method": "ditquant",
                "recipe": self.recipe,
                "modules_to_not_convert": self.modules_to_not_convert,
            }
        return {"quant_method": "ditquant", "plan": self.plan.to_dict()}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `__repr__` shows."""
        return self.to_dict()


class DitQuantizer(DiffusersQuantizer):
    """Swaps the layers of a plan in before their tensors are loaded, or quantizes weights as they arrive."""

    required_packages = ("ditquant",)

    def __init__(self, quantization_config: DitQuantConfig, **kwargs: Any):
        super().__init__(quantization_config, **kwargs)
        self._on_the_fly = None

    def _process_model_before_weight_loading(self, model: ModelMixin, **kwargs: Any) -> None:
        config = self.quantization_config
        if config.plan is not None:
            build_layers(model, config.plan, kwargs.get("torch_dtype"))
        else:
            from ditquant.integrations.on_the_fly import OnTheFly  # quantizing is not part of loading

            self._on_the_fly = OnTheFly(model, config.recipe, config.modules_to_not_convert)

    def check_if_quantized_param(self, model, param_value, param_name, state_dict, **kwargs: Any) -> bool:
        """Say whether a tensor that arrives has to be quantized."""
        return self._on_the_fly is not None and self._on_the_fly.wants(param_name)

    def create_quantized_param(
        self, model, param_value, param_name, target_device, state_dict, unexpected_keys=None, **kwargs: Any
    ) -> None:
        """Quantize a weight that arrives; read from the file, before any cast."""
        self._on_the_fly.quantize(model, param_name, state_dict[param_name], target_device, kwargs.get("dtype"))

    def update_missing_keys(self, model, missing_keys: list[str], prefix: str) -> list[str]:
        """Quantized weights are not missing although the file names them differently."""
        return missing_keys

    def _process_model_after_weight_loading(self, model: ModelMixin, **kwargs: Any) -> ModelMixin:
        if self._on_the_fly is not None:
            self.quantization_config.plan = self._on_the_fly.finish(model)
        check_layers(model)
        mark_quantized(model, self.quantization_config.plan, self)
        return model

    def _dequantize(self, model: ModelMixin) -> ModelMixin:
        """Replace every quantized layer by an nn.Linear of its decoded weight."""
        from ditquant.nn.swap import dequantize_model

        return dequantize_model(model)

    @property
    def is_serializable(self) -> bool:
        return True

    @property
    def is_trainable(self) -> bool:
        return False


def mark_quantized(model: nn.Module, plan: QuantPlan, quantizer: DitQuantizer | None = None) -> None:
    """Make a model whose layers were swapped one that diffusers saves and loads as quantized, and guard it."""
    for module in model.modules():
        if hasattr(module, "fuse_projections"):
            module.fuse_projections = partial(_refuse_fusing, "fuse_projections")
    if not isinstance(model, ModelMixin):
        return
    config = DitQuantConfig(plan=plan)
    model.is_quantized = True
    model.quantization_method = config.quant_method
    model.hf_quantizer = quantizer or DitQuantizer(config, pre_quantized=True)
    model.register_to_config(quantization_config=config)
    if hasattr(model, "fuse_qkv_projections"):
        model.fuse_qkv_projections = partial(_refuse_fusing, "fuse_qkv_projections")


def _refuse_fusing(what: str, *_args: Any, **_kwargs: Any) -> None:
    raise DitQuantError(
        f"{what}() would replace packed layers by full-precision ones. Call it before quantizing, or leave it out."
    )


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
