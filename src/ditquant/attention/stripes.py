"""Block-sparse, quantized attention on reordered tokens, one stripe of 64 rows at a time: memory is linear in tokens.

`attend_reference` is the definition: softmax over the kept tiles, renormalized. The others must agree with it.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ditquant.attention.grid import TILE
from ditquant.attention.rounding import Centered, Scaled, prepare, round_probabilities, tile_sums

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, int | None, int | None], Tensor]


def attend_reference(
    q: Float[Tensor, "B H S D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    keep: Bool[Tensor, "H T T"] | None,
    qk_bits: int | None,
    pv_bits: int | None,
) -> Float[Tensor, "B H S D"]:
    """Compute every tile, then drop those that are not kept."""
    tokens = q.shape[-2]
    rows, columns, values = prepare(q, k, v, qk_bits, pv_bits)
    out = torch.empty_like(q)
    for i in range(-(-tokens // TILE)):
        dropped = None if keep is None else ~keep[:, i].repeat_interleave(TILE, -1)[:, None, :tokens]
        out[..., _span(i), :] = _stripe(_take(rows, _span(i)), columns, values, pv_bits, dropped).to(q.dtype)
    return out


def attend_skipping(
    q: Float[Tensor, "B H S D"],
    k: Float[Tensor, "B H S D"],
    v: Float[Tensor, "B H S D"],
    keep: Bool[Tensor, "H T T"],
    qk_bits: int | None,
    pv_bits: int | None,
) -> Float[Tensor, "B H S D"]:
    """Compute the kept tiles only: gather their keys and values for each head and stripe."""
    tokens, inside = q.shape[-2], torch.arange(TILE, device=q.device)
    rows, columns, values = prepare(q, k, v, qk_bits, pv_bits)
    out = torch.empty_like(q)
    for head in range(q.shape[1]):
        r, c = (Scaled(x.values[:, head], x.scale[:, head]) for x in (rows, columns))
        for i, kept in enumerate(keep[head]):
            index = (kept.nonzero() * TILE + inside).flatten()
            index = index[index < tokens]
            near = Scaled(c.values.index_select(1, index), c.scale.index_select(1, index))
            part = Centered(values.values[:, head].index_select(1, index))
            if values.middle is not None:
                part = Centered(part.values, values.middle[:, head, kept])
            out[:, head, _span(i)] = _stripe(_take(r, _span(i)), near, part, pv_bits).to(q.dtype)
    return out


def choose_kernel(device: str, sparse: bool) -> Kernel:
    """Return the fastest kernel of torch; gathering tiles head by head pays on a CPU only."""
    return attend_skipping if sparse and device == "cpu" else attend_reference


def _stripe(q: Scaled, k: Scaled, v: Centered, pv_bits: int | None, dropped: Tensor | None = None) -> Tensor:
    scores = (q.values @ k.values.mT).mul_(q.scale).mul_(k.scale.mT)  # codes: the sums are those of INT32
    if dropped is not None:
        scores = scores.masked_fill_(dropped, float("-inf"))
    p = scores.softmax(-1)
    out = round_probabilities(p, pv_bits) @ v.values
    return out if v.middle is None else out + tile_sums(p) @ v.middle


def _span(i: int) -> slice:
    return slice(i * TILE, (i + 1) * TILE)


def _take(x: Scaled, rows: slice) -> Scaled:
    return Scaled(x.values[..., rows, :], x.scale[..., rows, :])
