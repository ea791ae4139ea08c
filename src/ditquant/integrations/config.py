"""What `from_pretrained` is told, and what config.json says about a quantized model."""

from collections.abc import Mapping
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any

from diffusers.quantizers.base import DiffusersQuantizer
from diffusers.quantizers.quantization_config import QuantizationConfigMixin

from ditquant.errors import DitQuantError
from ditquant.registry import unknown
from ditquant.specs import QuantPlan

CHECKSUMS_SUPPORTED = all(
    hasattr(DiffusersQuantizer, name)
    for name in ("get_state_dict_and_metadata", "maybe_update_loaded_keys", "maybe_update_state_dict")
)


class QuantMethod(str, Enum):
    """diffusers reads the method's name from an enum member."""

    DITQUANT = "ditquant"


class DitQuantConfig(QuantizationConfigMixin):
    """What `from_pretrained` is told: the plan of a quantized checkpoint, or a recipe to apply while loading.

    A recipe runs data-free, as the weights arrive. `modules_to_not_convert` lists full layer names, globs or `re:`
    patterns that stay in floating point. `checksums` says that the checkpoint was saved with them.
    """

    def __init__(
        self,
        recipe: str | Path | Mapping[str, Any] | None = None,
        plan: QuantPlan | Mapping[str, Any] | None = None,
        modules_to_not_convert: list[str] | None = None,
        checksums: bool = False,
        quant_method: str = QuantMethod.DITQUANT,
    ):
        if (recipe is None) == (plan is None):
            raise DitQuantError("a ditquant configuration needs a recipe (to quantize while loading) or a plan.")
        if str(getattr(quant_method, "value", quant_method)) != "ditquant":
            raise DitQuantError(f"quant_method {quant_method!r} is not 'ditquant'.")
        if type(checksums) is not bool:
            raise DitQuantError(f"checksums {checksums!r} is not allowed. Choose true or false.")
        self.quant_method = QuantMethod.DITQUANT
        self.recipe = str(recipe) if isinstance(recipe, Path) else recipe
        self.plan = plan if plan is None or isinstance(plan, QuantPlan) else QuantPlan.from_dict(plan)
        self.modules_to_not_convert = list(modules_to_not_convert or ())
        self.checksums = checksums

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """Read config.json's entry; a key that is not known is an error."""
        allowed = signature(cls.__init__).parameters.keys() - {"self"}
        for key in config_dict:
            if key not in allowed:
                raise unknown("key of the ditquant configuration", key, allowed)
        return super().from_dict(config_dict, return_unused_kwargs, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return what config.json stores: the plan."""
        if self.plan is None:
            return {
                "quant_method": "ditquant",
                "recipe": self.recipe,
                "modules_to_not_convert": self.modules_to_not_convert,
            }
        # What is saved now gets checksums, wherever the model came from.
        return {"quant_method": "ditquant", "plan": self.plan.to_dict(), "checksums": CHECKSUMS_SUPPORTED}

    def to_diff_dict(self) -> dict[str, Any]:
        """Return what `__repr__` shows."""
        return self.to_dict()
