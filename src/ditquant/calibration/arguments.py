"""The arguments of a recorded call as plain JSON data, so that they outlive the process."""

from typing import Any

from ditquant.calibration.store import Ref


class NotPlain(Exception):
    """An argument that is no tensor, number, word, or list, tuple or dictionary of them."""


class Carried(str):
    """Stands for what the list of blocks before returned under this name."""


def to_plain(value: Any) -> Any:
    """Write an argument with its tensors as references.

    Raises:
        NotPlain: an object that JSON cannot hold.
    """
    if isinstance(value, Ref):
        return {"tensor": value.key}
    if isinstance(value, Carried):
        return {"carried": str(value)}
    if type(value) in (list, tuple):
        return {type(value).__name__: [to_plain(v) for v in value]}
    if type(value) is dict and all(type(key) is str for key in value):
        return {"dict": {key: to_plain(v) for key, v in value.items()}}
    if value is None or type(value) in (bool, int, float, str):
        return value
    raise NotPlain(type(value).__name__)


def from_plain(data: Any) -> Any:
    """Read what `to_plain` wrote."""
    if not isinstance(data, dict):
        return data
    [(kind, content)] = data.items()
    match kind:
        case "tensor":
            return Ref(content)
        case "carried":
            return Carried(content)
        case "dict":
            return {key: from_plain(v) for key, v in content.items()}
        case _:
            return {"list": list, "tuple": tuple}[kind](from_plain(v) for v in content)
