"""LPIPS (Zhang et al. 2018): weighted distance of normalized features of AlexNet or VGG16.

Weights: the state dict of the authors' `lpips.LPIPS(net="alex")` or `(net="vgg")`, saved as safetensors.
"""

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ditquant.errors import DitQuantError
from ditquant.evaluation.networks.weights import as_batch, fill, read

SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of pictures from -1 to 1
# slices of (name in the file, channels in and out, kernel, stride, padding); a pool of `size` stands before all but
# the first, as far as the network has one there
ALEX = {
    "pool": (3, (False, True, True, False, False)),
    "slices": (
        ((0, 3, 64, 11, 4, 2),),
        ((3, 64, 192, 5, 1, 2),),
        ((6, 192, 384, 3, 1, 1),),
        ((8, 384, 256, 3, 1, 1),),
        ((10, 256, 256, 3, 1, 1),),
    ),
}
VGG = {
    "pool": (2, (False, True, True, True, True)),
    "slices": (
        ((0, 3, 64, 3, 1, 1), (2, 64, 64, 3, 1, 1)),
        ((5, 64, 128, 3, 1, 1), (7, 128, 128, 3, 1, 1)),
        ((10, 128, 256, 3, 1, 1), (12, 256, 256, 3, 1, 1), (14, 256, 256, 3, 1, 1)),
        ((17, 256, 512, 3, 1, 1), (19, 512, 512, 3, 1, 1), (21, 512, 512, 3, 1, 1)),
        ((24, 512, 512, 3, 1, 1), (26, 512, 512, 3, 1, 1), (28, 512, 512, 3, 1, 1)),
    ),
}
SMALLEST = 32  # pixels a side that leave something of the last features


class Lpips(nn.Module):
    """The distance of two pictures; 0 if they are equal."""

    def __init__(self, architecture: dict):
        super().__init__()
        self.pool, self.pooled = architecture["pool"]
        self.net = nn.Module()
        for i, convolutions in enumerate(architecture["slices"], 1):
            layers = {str(name): nn.Conv2d(*shape) for name, *shape in convolutions}
            self.net.add_module(f"slice{i}", nn.ModuleDict(layers))
            channels = convolutions[-1][2]
            linear = nn.ModuleDict({"model": nn.ModuleDict({"1": nn.Conv2d(channels, 1, 1, bias=False)})})
            self.add_module(f"lin{i - 1}", linear)

    @staticmethod
    def load(path: Path) -> "Lpips":
        """Build the network that a file holds.

        Raises:
            DitQuantError: not a file of LPIPS weights.
        """
        tensors = read(path)
        vgg = "net.slice1.2.weight" in tensors
        return fill(Lpips(VGG if vgg else ALEX), tensors, path)

    def features(self, x: Float[Tensor, "B 3 H W"]) -> list[Float[Tensor, "B C h w"]]:
        """Return what every slice makes of pictures from -1 to 1, of unit length at each place."""
        shift, scale = (torch.tensor(v).view(1, 3, 1, 1).to(x) for v in (SHIFT, SCALE))
        x, found = (x - shift) / scale, []
        for part, pooled in zip(self.net.children(), self.pooled, strict=True):
            x = F.max_pool2d(x, self.pool, 2) if pooled else x
            for convolution in part.values():
                x = F.relu(convolution(x))
            found.append(x / (x.square().sum(1, keepdim=True).sqrt() + 1e-10))
        return found

    @torch.no_grad()
    def forward(self, reference: UInt8[Tensor, "... H W 3"], image: UInt8[Tensor, "... H W 3"]) -> Float[Tensor, ""]:
        """Return the distance, over all frames of a video.

        Raises:
            DitQuantError: a side under 32 pixels.
        """
        if min(image.shape[-3:-1]) < SMALLEST:
            raise DitQuantError(f"LPIPS needs pictures of at least {SMALLEST} pixels a side, got {image.shape[-3:-1]}.")
        first, second = (self.features(as_batch(x) / 127.5 - 1) for x in (reference, image))
        total = torch.zeros(())
        for i, (a, b) in enumerate(zip(first, second, strict=True)):
            linear = self.get_submodule(f"lin{i}.model.1")
            total = total + linear((a - b).square()).mean()
        return total
