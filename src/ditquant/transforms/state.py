"""The stored tensors of a transform: integer words whose shape and dtype are known before anything is loaded."""

from torch import Tensor, nn

from ditquant.errors import damaged
from ditquant.words import to_words


def hold(module: nn.Module, **tensors: Tensor) -> None:
    """Keep tensors as Parameters of integer words and remember what they look like, for `check_state`."""
    for name, tensor in tensors.items():
        setattr(module, name, to_words(tensor))
    module.layout = {name: (parameter.shape, parameter.dtype) for name, parameter in module.named_parameters()}


def check_state(module: nn.Module, layer: str) -> None:
    """Refuse words that are missing or have another shape or dtype than the plan promised."""
    for name, (shape, dtype) in module.layout.items():
        words = getattr(module, name)
        if words.is_meta or words.shape != shape or words.dtype != dtype:
            found = "nothing" if words.is_meta else f"{words.dtype} {tuple(words.shape)}"
            raise damaged(f"{layer}: {module.kind}.{name} should be {dtype} {tuple(shape)}, found {found}")
