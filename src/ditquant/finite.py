"""Refuse a model whose values are not numbers, before they are calibrated with, or saved again."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ditquant.errors import DitQuantError


def check_finite(model: nn.Module, state: Iterable[tuple[str, Any]]) -> None:
    """Refuse parameters with NaN or infinite values; a buffer may be infinite, as masks are.

    `state` are the entries of the model's state dict, one at a time; what is not loaded is not looked at.

    Raises:
        DitQuantError: the first tensor with such values, by its name.
    """
    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    for name, tensor in state:
        if not isinstance(tensor, Tensor) or tensor.is_meta or not tensor.is_floating_point():
            continue
        wide = tensor if tensor.element_size() > 1 else tensor.float()  # torch cannot say it of every float8
        good = torch.isfinite(wide) if name in parameters else ~torch.isnan(wide)
        if not bool(good.all()):
            raise DitQuantError(f"{name!r} holds NaN or infinite values. Check the checkpoint.")
