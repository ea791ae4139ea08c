"""Build a component without its values, from its config alone."""

from importlib import import_module
from pathlib import Path
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


def empty_model(folder: Path, library: str, name: str) -> nn.Module:
    """Build a component from its config: parameters on the meta device, tied where they are, buffers computed.

    Raises:
        DitQuantError: a class that the library (diffusers or transformers) does not have, a config that is not its.
    """
    from accelerate import init_empty_weights

    kind = getattr(import_module(library), name, None) if library in ("diffusers", "transformers") else None
    if not isinstance(kind, type):
        raise DitQuantError(
            f"{str(folder)!r} is a {name} of {library}, whose files cannot be read one block at a time."
        )
    try:
        with init_empty_weights():
            if library == "diffusers":
                return kind.from_config(kind.load_config(folder))
            model = kind(kind.config_class.from_pretrained(folder))
    except Exception as error:  # whatever a class makes of values that it does not expect
        raise damaged(f"config.json of {str(folder)!r} does not build a {name}: {first_line(error)}") from None
    model.tie_weights()
    return model
