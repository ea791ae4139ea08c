"""Floating-point state kept as integer words: no cast of the model, no loader and no offload can change a bit of it.

diffusers casts floating tensors to `torch_dtype` when it loads, `.to(dtype)` casts them, offloading to disk loses
buffers; integer Parameters pass through all of these unchanged, and do not count when a model's dtype is inferred.
"""

import torch
from torch import Tensor, nn

_WORD = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def word_dtype(dtype: torch.dtype) -> torch.dtype:
    """The integer dtype that holds values of `dtype`; integer dtypes hold themselves."""
    return _WORD[dtype.itemsize] if dtype.is_floating_point else dtype


def to_words(tensor: Tensor) -> nn.Parameter:
    """Freeze a tensor as a Parameter of integer words."""
    return nn.Parameter(tensor.contiguous().view(word_dtype(tensor.dtype)), requires_grad=False)


def from_words(words: Tensor, dtype: torch.dtype) -> Tensor:
    """View words as the values they hold."""
    return words.view(dtype)
