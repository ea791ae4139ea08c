"""Post-training quantization of diffusion transformers.

`import ditquant` makes diffusers load quantized checkpoints; `ditquant.quantize` makes them.
"""

from importlib import import_module
from importlib.metadata import version
from typing import Any

from ditquant.integrations.on_import import register_with_diffusers

__version__ = version("ditquant")

_PUBLIC = {
    "ActSpec": "ditquant.specs",
    "DitQuantConfig": "ditquant.integrations.diffusers",
    "DitQuantError": "ditquant.errors",
    "DitQuantizer": "ditquant.integrations.diffusers",
    "LayerPlan": "ditquant.specs",
    "PackedWeight": "ditquant.formats",
    "QuantLinear": "ditquant.nn",
    "QuantPlan": "ditquant.specs",
    "Recipe": "ditquant.recipe",
    "TransformSpec": "ditquant.specs",
    "WeightSpec": "ditquant.specs",
    "quantize": "ditquant.engine",
    "set_mode": "ditquant.nn",
}
_MODULES = ("auto", "evaluation", "formats", "kernels", "models", "nn", "quantizers", "sources", "transforms")
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    """Import public names and submodules where they are first used."""
    if name in _PUBLIC:
        return getattr(import_module(_PUBLIC[name]), name)
    if name in _MODULES:
        return import_module(f"ditquant.{name}")
    raise AttributeError(f"module 'ditquant' has no attribute {name!r}")


register_with_diffusers()
