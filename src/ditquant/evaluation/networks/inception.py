"""Inception v3 (Szegedy et al. 2015) as FID uses it: 2,048 features of a picture.

Differs from the paper as the network of FID does: pooled borders are averaged over pixels of the picture only, and the
last block pools by maximum. Weights: the state dict of pytorch-fid's `pt_inception-2015-12-05`, saved as safetensors.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ditquant.evaluation.networks.weights import as_batch, fill, read

SIDE = 299
BATCH = 16
ROW, COLUMN = (1, 7), (7, 1)

# name -> (channels out, kernel, stride); padding keeps the size where the stride is 1
STEM = (
    ("Conv2d_1a_3x3", 32, 3, 2),
    ("Conv2d_2a_3x3", 32, 3, 0),
    ("Conv2d_2b_3x3", 64, 3, 1),
    "pool",
    ("Conv2d_3b_1x1", 80, 1, 1),
    ("Conv2d_4a_3x3", 192, 3, 0),
    "pool",
)
Chain = tuple


def _double(first: int, second: int, third: int, stride: int = 1) -> Chain:
    names = ("branch3x3dbl_1", first, 1, 1), ("branch3x3dbl_2", second, 3, 1), ("branch3x3dbl_3", third, 3, stride)
    return names


def _a(pool: int) -> list[Chain]:
    return [
        (("branch1x1", 64, 1, 1),),
        (("branch5x5_1", 48, 1, 1), ("branch5x5_2", 64, 5, 1)),
        _double(64, 96, 96),
        ("average", ("branch_pool", pool, 1, 1)),
    ]


def _c(width: int) -> list[Chain]:
    doubled = [("branch7x7dbl_1", width, 1, 1)]
    doubled += [(f"branch7x7dbl_{i}", width, COLUMN if i % 2 == 0 else ROW, 1) for i in (2, 3, 4)]
    return [
        (("branch1x1", 192, 1, 1),),
        (("branch7x7_1", width, 1, 1), ("branch7x7_2", width, ROW, 1), ("branch7x7_3", 192, COLUMN, 1)),
        (*doubled, ("branch7x7dbl_5", 192, ROW, 1)),
        ("average", ("branch_pool", 192, 1, 1)),
    ]


def _e(pool: str) -> list[Chain]:
    """A list within a chain is a fork whose ends are put together."""
    return [
        (("branch1x1", 320, 1, 1),),
        (("branch3x3_1", 384, 1, 1), [("branch3x3_2a", 384, (1, 3), 1), ("branch3x3_2b", 384, (3, 1), 1)]),
        (
            ("branch3x3dbl_1", 448, 1, 1),
            ("branch3x3dbl_2", 384, 3, 1),
            [("branch3x3dbl_3a", 384, (1, 3), 1), ("branch3x3dbl_3b", 384, (3, 1), 1)],
        ),
        (pool, ("branch_pool", 192, 1, 1)),
    ]


_TALL = (("branch7x7x3_1", 192, 1, 1), ("branch7x7x3_2", 192, ROW, 1), ("branch7x7x3_3", 192, COLUMN, 1))
BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": [(("branch3x3", 384, 3, 2),), _double(64, 96, 96, stride=2), ("pool",)],
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": [
        (("branch3x3_1", 192, 1, 1), ("branch3x3_2", 320, 3, 2)),
        (*_TALL, ("branch7x7x3_4", 192, 3, 2)),
        ("pool",),
    ],
    "Mixed_7b": _e("average"),
    "Mixed_7c": _e("largest"),
}
POOLS = {
    "pool": lambda x: F.max_pool2d(x, 3, 2),
    "average": lambda x: F.avg_pool2d(x, 3, 1, 1, count_include_pad=False),
    "largest": lambda x: F.max_pool2d(x, 3, 1, 1),
}


class Convolution(nn.Module):
    """Convolution without bias, batch normalization, ReLU; stride 0 stands for 1 without padding."""

    def __init__(self, channels: int, out: int, kernel: int | tuple[int, int], stride: int):
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = tuple(side // 2 for side in sides) if stride == 1 else (0, 0)
        self.conv = nn.Conv2d(channels, out, sides, max(stride, 1), padding, bias=False)
        self.bn = nn.BatchNorm2d(out, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Chains side by side, their ends put together."""

    def __init__(self, channels: int, chains: Sequence[Chain]):
        super().__init__()
        self.chains, self.channels = chains, 0
        for chain in chains:
            width = channels
            for link in chain:
                parts = [] if isinstance(link, str) else link if isinstance(link, list) else [link]
                for name, out, kernel, stride in parts:
                    self.add_module(name, Convolution(width, out, kernel, stride))
                width = sum(part[1] for part in parts) or width
            self.channels += width

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self._run(chain, x) for chain in self.chains], 1)

    def _run(self, chain: Chain, x: Tensor) -> Tensor:
        for link in chain:
            if isinstance(link, str):
                x = POOLS[link](x)
            elif isinstance(link, list):
                x = torch.cat([getattr(self, part[0])(x) for part in link], 1)
            else:
                x = getattr(self, link[0])(x)
        return x


class Inception(nn.Module):
    """The network up to its last pooling."""

    def __init__(self) -> None:
        super().__init__()
        channels = 3
        for link in STEM:
            if not isinstance(link, str):
                name, out, kernel, stride = link
                self.add_module(name, Convolution(channels, out, kernel, stride))
                channels = out
        for name, chains in BLOCKS.items():
            block = Block(channels, chains)
            self.add_module(name, block)
            channels = block.channels

    @staticmethod
    def load(path: Path) -> "Inception":
        """Build the network that a file holds.

        Raises:
            DitQuantError: not a file of FID's Inception weights.
        """
        return fill(Inception(), read(path), path)

    def forward(self, x: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 2048"]:
        """Return the features of pictures from 0 to 255."""
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", align_corners=False) / 127.5 - 1
        for link in STEM:
            x = POOLS[link](x) if isinstance(link, str) else getattr(self, link[0])(x)
        for name in BLOCKS:
            x = getattr(self, name)(x)
        return x.mean((2, 3))

    @torch.no_grad()
    def features(self, images: Sequence[UInt8[np.ndarray, "... H W 3"]]) -> Float[Tensor, "N 2048"]:
        """Return the features of pictures, one row for each frame of a video."""
        batches = [as_batch(torch.as_tensor(image)).split(BATCH) for image in images]
        return torch.cat([self(part) for batch in batches for part in batch])
