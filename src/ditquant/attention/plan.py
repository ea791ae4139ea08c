"""What was decided for the attention of a model: an order for every head, masks for every bin of steps, bit widths."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from ditquant.attention.bits import mask_bytes, pack_mask, unpack_mask
from ditquant.attention.grid import TokenGrid
from ditquant.attention.rounding import check_bits
from ditquant.attention.spec import check_density
from ditquant.errors import DitQuantError

VERSION = 1


def step_bins(steps: int, own: int | None = None) -> tuple[int, ...]:
    """Return the bin of every denoising step: the first `own` steps have one each, all others share the last.

    As in the paper, `own` is half of the steps if it is not given.
    """
    if type(steps) is not int or steps < 1:
        raise DitQuantError(f"{steps!r} denoising steps are not allowed. Choose a positive integer.")
    own = steps // 2 if own is None else own
    if type(own) is not int or not 0 <= own <= steps:
        raise DitQuantError(f"{own!r} steps with a mask of their own are not allowed. Choose 0 to {steps}.")
    return tuple(min(step, own) for step in range(steps))


@dataclass(frozen=True, eq=False)
class AttentionPlan:
    """Orders are indices into ORDERS; `masks` None keeps every tile; `steps` has the bin of every denoising step.

    Blocks are counted over all attention layers that the plan is for. `density` is the fraction of tiles asked for.
    `timesteps` are those that the model was called with at every step, if they are known.
    """

    grid: TokenGrid
    orders: UInt8[Tensor, "blocks H"]
    masks: UInt8[Tensor, "bins blocks H bytes"] | None = None
    steps: tuple[int, ...] = (0,)
    qk_bits: int | None = None
    pv_bits: int | None = None
    density: float = 1.0
    timesteps: tuple[float, ...] = ()
    version: int = VERSION

    def __post_init__(self):
        check_bits(self.qk_bits, "qk_bits")
        check_bits(self.pv_bits, "pv_bits")
        check_density(self.density)
        if self.timesteps and not (len(self.timesteps) == len(self.steps) and all(map(_is_number, self.timesteps))):
            raise DitQuantError(f"an attention plan of {len(self.steps)} steps has the timesteps {self.timesteps}.")
        if self.version != VERSION or type(self.version) is not int:
            raise DitQuantError(f"attention plan version {self.version!r} is not read by this ditquant ({VERSION} is).")
        _check_tensor(self.orders, "orders", 2, None)
        wrong = ~torch.isin(self.orders, torch.tensor(self.grid.candidates(), dtype=torch.uint8))
        if wrong.any():
            raise DitQuantError(f"order {int(self.orders[wrong][0])} is none of the {self.grid}.")
        if self.masks is not None:
            self._check_masks()
        bins = 1 if self.masks is None else self.bins
        if any(type(i) is not int for i in self.steps) or sorted(set(self.steps)) != list(range(bins)):
            raise DitQuantError(f"the steps of an attention plan must use each of its {bins} bins, got {self.steps}.")

    @property
    def blocks(self) -> int:
        """Attention layers."""
        return self.orders.shape[0]

    @property
    def heads(self) -> int:
        """Heads of a layer."""
        return self.orders.shape[1]

    @property
    def bins(self) -> int:
        """Sets of masks."""
        return 1 if self.masks is None else self.masks.shape[0]

    def bin_of(self, step: int, steps: int | None = None) -> int:
        """Return the bin of a step in a run of `steps`, as far along as the step that the plan was fitted on."""
        steps = len(self.steps) if steps is None else steps
        if not 0 <= step < steps:
            raise DitQuantError(
                f"step {step} is outside of {steps} denoising steps; the plan was fitted on {len(self.steps)}. "
                "Say how many steps the run has."
            )
        return self.steps[step * len(self.steps) // steps]

    def bin_near(self, timestep: float) -> int:
        """Return the bin of the step whose timestep is nearest; the earlier one of equals."""
        return self.steps[min(range(len(self.steps)), key=lambda step: abs(self.timesteps[step] - timestep))]

    def order(self, block: int) -> Int[Tensor, " H"]:
        """Return the order of every head of a block."""
        return self.orders[block].long()

    def mask(self, bin_: int, block: int) -> Bool[Tensor, "H T T"] | None:
        """Return the mask of a block, None if every tile is kept."""
        return None if self.masks is None else unpack_mask(self.masks[bin_, block], self.grid.tiles)

    def kept(self, bin_: int, block: int) -> float:
        """Return the fraction of tiles that a block really keeps."""
        mask = self.mask(bin_, block)
        return 1.0 if mask is None else float(mask.double().mean())

    def check_fits(self, grid: TokenGrid, blocks: int, heads: int) -> None:
        """Refuse a model or a size that the plan was not made for."""
        if (self.grid, self.blocks, self.heads) != (grid, blocks, heads):
            raise DitQuantError(
                f"the attention plan is for {self.blocks} blocks of {self.heads} heads on {self.grid}, "
                f"the model has {blocks} blocks of {heads} heads on {grid}. Fit a plan for this model and size."
            )

    def _check_masks(self) -> None:
        tiles = self.grid.tiles
        _check_tensor(self.masks, "masks", 4, (*self.orders.shape, mask_bytes(tiles)))
        for i, blocks in enumerate(self.masks):
            for block, bits in enumerate(blocks):
                mask = unpack_mask(bits, tiles)
                if not torch.equal(pack_mask(mask), bits):
                    raise DitQuantError(
                        f"the mask of bin {i}, block {block} has bits beyond its {tiles}x{tiles} tiles."
                    )
                if not mask.any(-1).all():
                    head, row = (~mask.any(-1)).nonzero()[0].tolist()
                    raise DitQuantError(f"bin {i}, block {block}, head {head} keeps no tile in row {row} of tiles.")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _check_tensor(tensor: Tensor, name: str, ndim: int, end: tuple[int, ...] | None) -> None:
    if tensor.dtype != torch.uint8 or tensor.ndim != ndim or 0 in tensor.shape:
        raise DitQuantError(
            f"{name} of an attention plan must be torch.uint8 with {ndim} axes, "
            f"got {tensor.dtype} {tuple(tensor.shape)}."
        )
    if end is not None and tensor.shape[-len(end) :] != end:
        raise DitQuantError(f"{name} of an attention plan must end with {end}, got {tuple(tensor.shape)}.")
