"""diffusers' GELU behind a quantized layer, computed by the kernel of its product."""

import torch
from diffusers.models.activations import GELU
from torch import nn

from ditquant.nn.linear import QuantLinear


class FusedGELU(GELU):
    """`GELU` with tanh; where hooks look at the layer, or adapters wrap it, the GELU comes behind it as ever."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Compute gelu(proj(x))."""
        proj = self.proj
        if isinstance(proj, QuantLinear) and not proj._forward_hooks:
            return proj(hidden_states, gelu=True)
        return super().forward(hidden_states)


def fuse_gelu(model: nn.Module) -> None:
    """Fuse the GELUs (tanh) of diffusers that follow a quantized layer; their state and their base class stay."""
    for module in model.modules():
        if type(module) is GELU and module.approximate == "tanh" and isinstance(module.proj, QuantLinear):
            module.__class__ = FusedGELU
