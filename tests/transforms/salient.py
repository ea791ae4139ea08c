"""Inputs with a few fixed channels that are large at every token, as diffusion transformers have them."""

import torch

from ditquant.stats import LayerStats


def salient(tokens: int, width: int, seed: int = 0, draw: int = 0) -> torch.Tensor:
    """Tokens of one layer: `seed` fixes the channels, their signs and sizes (20 to 245), `draw` the tokens."""
    layer, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1000 + draw)
    x = torch.randn(tokens, width, generator=noise) * torch.exp(0.3 * torch.randn(width, generator=layer))
    channels = torch.randperm(width, generator=layer)[:16]
    size = 20 * (245 / 20) ** torch.rand(16, generator=layer) * torch.randn(16, generator=layer).sign()
    x[:, channels] = size * (1 + 0.2 * torch.randn(tokens, 16, generator=noise))
    return x


def stats_of(x: torch.Tensor) -> LayerStats:
    stats = LayerStats(x.shape[1])
    stats.update(x)
    return stats


def weight(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 0.05
