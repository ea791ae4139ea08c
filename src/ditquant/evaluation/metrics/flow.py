"""Dense optical flow by iterated Lucas-Kanade on a pyramid (Le Besnerais, Champagnat 2005), and warping with it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

SMALLEST = 16  # pixels a side of the coarsest level
WARPS = 6  # at each level
RADIUS = 5  # of the window that shares a displacement
RIDGE = 1e-7  # where there is no texture nothing moves


def optical_flow(first: Float[Tensor, "B H W"], second: Float[Tensor, "B H W"]) -> Float[Tensor, "B 2 H W"]:
    """Return the displacement (x, y) in pixels with second(p + flow(p)) = first(p); grey pictures in [0, 1]."""
    pyramid = [(first[:, None].double(), second[:, None].double())]
    while min(pyramid[-1][0].shape[-2:]) >= 2 * SMALLEST:
        pyramid.append(tuple(F.avg_pool2d(_blur(level, 1), 2) for level in pyramid[-1]))
    flow = torch.zeros_like(pyramid[-1][0]).repeat(1, 2, 1, 1)
    for one, two in reversed(pyramid):
        flow = _resized(flow, one.shape[-2:])
        for _ in range(WARPS):
            flow = _median(_solve(one, warp(two, flow), flow))
    return flow


def warp(picture: Float[Tensor, "B C H W"], flow: Float[Tensor, "B 2 H W"]) -> Float[Tensor, "B C H W"]:
    """Return picture(p + flow(p)), bilinear; outside the picture the nearest pixel."""
    height, width = picture.shape[-2:]
    x, y = _places(flow)
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), -1)
    return F.grid_sample(picture, grid.to(picture), padding_mode="border", align_corners=True)


def visible(forward: Float[Tensor, "B 2 H W"], backward: Float[Tensor, "B 2 H W"]) -> Bool[Tensor, "B H W"]:
    """Say which pixels stay in the picture and come back to where they were (Sundaram, Brox, Keutzer 2010)."""
    height, width = forward.shape[-2:]
    back = warp(backward, forward)
    error, size = ((a.square()).sum(1) for a in (forward + back, torch.cat((forward, back), 1)))
    x, y = _places(forward)
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    return inside & (error < 0.01 * size + 0.5)


def _places(flow: Tensor) -> tuple[Tensor, Tensor]:
    height, width = flow.shape[-2:]
    y, x = torch.meshgrid(torch.arange(height).to(flow), torch.arange(width).to(flow), indexing="ij")
    return x + flow[:, 0], y + flow[:, 1]


def _solve(one: Tensor, two: Tensor, flow: Tensor) -> Tensor:
    """Solve the normal equations of every window for the whole flow: increments alone would diverge."""
    grad_x, grad_y = _gradients(two)
    target = one - two + grad_x * flow[:, :1] + grad_y * flow[:, 1:]
    products = (grad_x**2, grad_x * grad_y, grad_y**2, grad_x * target, grad_y * target)
    xx, xy, yy, xt, yt = (_blur(product, RADIUS) for product in products)
    determinant = (xx + RIDGE) * (yy + RIDGE) - xy**2
    return torch.cat(((yy + RIDGE) * xt - xy * yt, (xx + RIDGE) * yt - xy * xt), 1) / determinant


def _gradients(picture: Tensor) -> tuple[Tensor, Tensor]:
    padded = F.pad(picture, (1, 1, 1, 1), mode="replicate")
    across = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    return across, (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2


def _blur(picture: Tensor, radius: int) -> Tensor:
    padded = F.pad(picture, (radius,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * radius + 1, stride=1)


def _median(flow: Tensor) -> Tensor:
    """Take out single wild vectors."""
    windows = F.pad(flow, (1, 1, 1, 1), mode="replicate").unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.flatten(-2).median(-1).values


def _resized(flow: Tensor, size: tuple[int, int]) -> Tensor:
    factor = torch.tensor([size[1] / flow.shape[-1], size[0] / flow.shape[-2]]).to(flow)
    return F.interpolate(flow, size, mode="bilinear", align_corners=False) * factor.view(1, 2, 1, 1)
