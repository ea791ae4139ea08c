"""Compiled CPU kernels: packed codes -> INT8 tiles -> integer products, and one pass from floats to INT8 codes.

They are optional: built when the package is installed where a compiler is at hand, taken where the processor has the
instructions (AVX512 with VBMI and VNNI, AMX where it is there; a second library is for AVX2), and replaced by plain
torch everywhere else.
"""

from ditquant.kernels.cpu.groups import linear_groups, why_not_groups
from ditquant.kernels.cpu.library import why_not, why_not_attention
from ditquant.kernels.cpu.linear import linear_rows, why_not_rows

__all__ = ["linear_groups", "linear_rows", "why_not", "why_not_attention", "why_not_groups", "why_not_rows"]
