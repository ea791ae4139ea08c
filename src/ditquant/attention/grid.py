"""Where tokens stand: frames, rows and columns of a video or an image, text before or after, and the six axis orders.

PAROAttention, section 3: an order flattens the visual tokens with its first letter as the slowest axis. Text stays.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from ditquant.errors import DitQuantError

ORDERS = ("FHW", "FWH", "HFW", "HWF", "WFH", "WHF")
TILE = 64  # tokens of a tile's side


@dataclass(frozen=True)
class TokenGrid:
    """`frames` x `height` x `width` visual tokens, flattened FHW, and `text` tokens before or after them."""

    frames: int
    height: int
    width: int
    text: int = 0
    text_first: bool = True

    def __post_init__(self):
        for name in ("frames", "height", "width", "text"):
            value, least = getattr(self, name), 0 if name == "text" else 1
            if type(value) is not int or value < least:
                raise DitQuantError(f"{name} {value!r} of a token grid is not allowed. Choose an integer from {least}.")
        if type(self.text_first) is not bool:
            raise DitQuantError(f"text_first {self.text_first!r} of a token grid must be true or false.")

    def __str__(self) -> str:
        place = f" and {self.text} of text {'before' if self.text_first else 'after'} them" if self.text else ""
        return f"{self.frames}x{self.height}x{self.width} visual tokens{place}"

    @property
    def visual(self) -> int:
        """Visual tokens."""
        return self.frames * self.height * self.width

    @property
    def tokens(self) -> int:
        """All tokens: the length of the sequence."""
        return self.visual + self.text

    @property
    def tiles(self) -> int:
        """Tiles along one side of the attention map; the last one may be ragged."""
        return -(-self.tokens // TILE)

    def check(self, tokens: int, name: str = "the sequence") -> None:
        """Refuse a sequence of another length."""
        if tokens != self.tokens:
            raise DitQuantError(
                f"{name} has {tokens} tokens, the grid of {self} has {self.tokens}. "
                "Give the grid of this resolution, number of frames and text length."
            )

    def of_length(self, tokens: int, name: str = "the sequence") -> "TokenGrid":
        """Return the grid of a sequence: this one, or with text after the visual tokens one with more or less of it.

        The tiles of visual tokens are then the same. With text before them they would begin elsewhere.
        """
        if self.text and not self.text_first and tokens >= self.visual:
            return replace(self, text=tokens - self.visual)
        self.check(tokens, name)
        return self

    def permutation(self, order: int) -> Int[Tensor, " S"]:
        """Return p with reordered[i] = tokens[p[i]], for an index into ORDERS."""
        if not 0 <= order < len(ORDERS):
            raise DitQuantError(f"order {order} is not allowed. Choose 0 to {len(ORDERS) - 1}: {', '.join(ORDERS)}.")
        sizes = (self.frames, self.height, self.width)
        visual = torch.arange(self.visual).view(sizes).permute(["FHW".index(axis) for axis in ORDERS[order]]).flatten()
        if self.text_first:
            return torch.cat([torch.arange(self.text), visual + self.text])
        return torch.cat([visual, torch.arange(self.visual, self.tokens)])

    def inverse(self, order: int) -> Int[Tensor, " S"]:
        """Return the permutation that undoes `permutation(order)`."""
        forward = self.permutation(order)
        back = torch.empty_like(forward)
        back[forward] = torch.arange(self.tokens)
        return back

    def indices(self, orders: Int[Tensor, " H"]) -> Int[Tensor, "H S"]:
        """Return the permutation of every head, on the device of `orders`."""
        chosen = orders.tolist()
        table = {order: self.permutation(order) for order in sorted(set(chosen))}
        return torch.stack([table[order] for order in chosen]).to(orders.device)

    def candidates(self) -> tuple[int, ...]:
        """Return the orders that differ: six for a video, FHW and FWH for an image."""
        sizes = {"F": self.frames, "H": self.height, "W": self.width}
        distinct: dict[str, int] = {}
        for i, order in enumerate(ORDERS):
            distinct.setdefault("".join(axis for axis in order if sizes[axis] > 1), i)
        return tuple(distinct.values())

    def text_tiles(self) -> Bool[Tensor, "T T"]:
        """Return the tiles that hold a row or a column of text; they are dense whatever a mask says."""
        has = torch.zeros(self.tiles, dtype=torch.bool)
        first = 0 if self.text_first else self.visual
        if self.text:
            has[first // TILE : (first + self.text - 1) // TILE + 1] = True
        return has[:, None] | has[None, :]
