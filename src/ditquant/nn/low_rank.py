"""The low-rank branch beside a quantized product (SVDQuant, arXiv 2411.05007): y = Q(x) Q(W - U D)ᵀ + (x Dᵀ) Uᵀ."""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditquant.errors import DitQuantError, damaged
from ditquant.words import from_words, to_words, word_dtype

KIND = torch.float16


class LowRank(nn.Module):
    """Factors `up` [N, r] and `down` [r, K] in half precision, kept as integer words; the input is not quantized."""

    def __init__(self, down: Float[Tensor, "r K"], up: Float[Tensor, "N r"]):
        super().__init__()
        self.down, self.up = to_words(down.to(KIND)), to_words(up.to(KIND))

    @staticmethod
    def empty(in_features: int, out_features: int, rank: int, device=None) -> "LowRank":
        """Build it to be filled from a checkpoint.

        Raises:
            DitQuantError: a rank that is above the smaller width.
        """
        if rank > min(in_features, out_features):
            raise DitQuantError(
                f"rank {rank} is not allowed for a layer {in_features} -> {out_features}. "
                f"Choose at most {min(in_features, out_features)}."
            )
        down, up = ((rank, in_features), (out_features, rank))
        return LowRank(*(torch.empty(shape, dtype=KIND, device=device) for shape in (down, up)))

    def forward(self, x: Float[Tensor, "*B K"]) -> Float[Tensor, "*B N"]:
        """Multiply by both factors in the dtype of `x`."""
        down, up = (from_words(words, KIND).to(x.dtype) for words in (self.down, self.up))
        return F.linear(F.linear(x, down), up)

    def product(self) -> Float[Tensor, "N K"]:
        """Return U D in float32."""
        return from_words(self.up, KIND).float() @ from_words(self.down, KIND).float()

    def check(self, name: str) -> None:
        """Raise DitQuantError if the loaded factors are not finite numbers of half precision."""
        for key, words in self.named_parameters():
            if words.is_meta or words.dtype != word_dtype(KIND) or not bool(from_words(words, KIND).isfinite().all()):
                raise damaged(f"{name}.low_rank.{key} does not hold finite numbers of half precision")
