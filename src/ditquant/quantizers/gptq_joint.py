"""GPTQ over inputs and outputs: an error is taken back by the columns to come and by the rows to come.

With H = E[x xᵀ] of the inputs and G = E[g gᵀ] of the gradients by the outputs, an error E of the weight changes what
the model predicts by about tr(G E H Eᵀ), the Kronecker-factored curvature (Martens and Grosse, arXiv 1503.05671). With
H = R Rᵀ, G = S Sᵀ, both upper triangular, that is |Sᵀ E R|², and it is least if rounding entry (i, k) with error e is
followed by
    w_jl -= a_ij e b_kl,   j >= i, l >= k, (j, l) != (i, k),
where b_kl = R_kk (R⁻¹)_kl is GPTQ's share of a column's error, and a_ij = S_ii (S⁻¹)_ij that of a row's. Entries of one
antidiagonal do not depend on each other; tiles keep each step small.
"""

from functools import cache

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ditquant.quantizers.gptq_factor import Factor
from ditquant.quantizers.gptq_rounding import Rounding

TILE = 64


def round_jointly(
    weight: Float[Tensor, "N K"], inputs: Factor, outputs: Factor, rounding: Rounding
) -> UInt8[Tensor, "N K"]:
    """Return the codes of a weight whose rows have one group each, settled before anything is compensated."""
    rows, columns = outputs.channels, inputs.channels
    down, right = outputs.share(), inputs.share()
    rounding.enter(0, weight.T)
    left = weight[rows][:, columns].contiguous()  # what is still to be met, with all errors taken back so far
    codes = torch.empty(left.shape, dtype=torch.uint8)
    for k in _tiles(left.shape[1]):
        errors = torch.empty_like(left[:, k])
        for i in _tiles(len(left)):
            codes[i, k], errors[i] = _round_tile(left[i, k], down[i, i], right[k, k], rounding, rows[i])
            left[i.stop :, k].addmm_(down[i, i.stop :].T, errors[i] @ right[k, k], alpha=-1)
        left[:, k.stop :].addmm_(down.T @ errors, right[k, k.stop :], alpha=-1)
    found = torch.empty_like(codes)
    found[rows[:, None], columns] = codes
    return found


def _tiles(length: int) -> list[slice]:
    return [slice(start, min(start + TILE, length)) for start in range(0, length, TILE)]


def _round_tile(
    left: Float[Tensor, "m n"],
    down: Float[Tensor, "m m"],
    right: Float[Tensor, "n n"],
    rounding: Rounding,
    rows: Int64[Tensor, " m"],
) -> tuple[UInt8[Tensor, "m n"], Float[Tensor, "m n"]]:
    """Return codes and rounding errors, one antidiagonal after the other."""
    left, errors, codes = left.clone(), torch.empty_like(left), torch.empty(left.shape, dtype=torch.uint8)
    for i, k in _antidiagonals(*left.shape):
        wanted = left[i, k]
        codes[i, k], rounded = rounding.round(wanted, rows[i])
        error = errors[i, k] = wanted - rounded
        left.addmm_(down[i].T * error, right[k], alpha=-1)  # what is done already changes too and is not read again
    return codes, errors


@cache
def _antidiagonals(rows: int, columns: int) -> list[tuple[Int64[Tensor, " d"], Int64[Tensor, " d"]]]:
    found = []
    for total in range(rows + columns - 1):
        i = torch.arange(max(0, total - columns + 1), min(rows, total + 1))
        found.append((i, total - i))
    return found
