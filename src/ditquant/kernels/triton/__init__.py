"""Triton kernels for CUDA: one pass from floats to INT8 codes, products from packed codes, attention over kept tiles.

They are optional: taken where Triton is installed and the card has the instructions (compute capability 8.0 and more),
and replaced by plain torch everywhere else. Nothing here imports Triton before a kernel runs.
"""

from ditquant.kernels.triton.attend import attend_triton, why_not_attend
from ditquant.kernels.triton.available import why_not
from ditquant.kernels.triton.linear import linear_triton, rotates, why_not_triton

__all__ = ["attend_triton", "linear_triton", "rotates", "why_not", "why_not_attend", "why_not_triton"]
