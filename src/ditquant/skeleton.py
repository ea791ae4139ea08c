"""Build a component without its values, from its config alone."""

from typing import Any

from torch import nn

from ditquant.errors import DitQuantError, damaged, first_line


def model_class(config: dict[str, Any], name: str) -> Any:
    """Return the class of diffusers that a component's config names."""
    import diffusers

    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise DitQuantError(f"{name!r} is a {config.get('_class_name')!r}, which is no model class of diffusers.")
    return kind


def skeleton(config: dict[str, Any], name: str) -> nn.Module:
    """Build a component from its config on the meta device: shapes without values."""
    from accelerate import init_empty_weights

    known = {key: value for key, value in config.items() if key != "quantization_config"}
    kind = model_class(config, name)
    try:
        with init_empty_weights(include_buffers=True):
            return kind.from_config(known)
    except Exception as error:  # whatever a class makes of values that it does not expect
        raise damaged(f"config.json of {name!r} does not build a {kind.__name__}: {first_line(error)}") from None
