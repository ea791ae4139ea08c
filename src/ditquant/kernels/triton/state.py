"""What the kernels need of a packed weight besides its codes: a table of values, or zero points, and scales."""

from dataclasses import dataclass

import torch
from torch import Tensor

from ditquant.formats import FORMATS, PackedWeight
from ditquant.formats.twin_log import codebook
from ditquant.kernels.kept import keep


@dataclass(frozen=True)
class RowState:
    """INT8 value = table[row, code], or code - zero_point, or code - 2^(bits-1); weight = scale * value."""

    table: Tensor | None  # int8 [N, V]
    zero_point: Tensor | None  # uint8 [N, G]
    scale: Tensor  # float32 [N]


def row_state(weight: PackedWeight) -> RowState:
    """Return the state of a weight with one scale a row."""
    if weight.spec.format == "affine":
        return RowState(None, weight.params.get("zero_point"), weight.params["scale"].flatten())
    table, scale = keep(weight, "table", lambda: _contiguous(FORMATS[weight.spec.format].int8_table, weight))
    return RowState(table, None, scale)


def part_state(weight: PackedWeight, part: int) -> tuple[Tensor | None, Tensor | None]:
    """Return the table, or the zero points, one for every `part` channels where the weight has groups."""
    if weight.spec.group_size is None:
        state = row_state(weight)
        return state.table, state.zero_point
    zero = weight.params.get("zero_point")
    return None, None if zero is None else zero.repeat_interleave(weight.spec.group_size // part, 1)


def group_scale(weight: PackedWeight) -> Tensor:
    """Return the scales [G, N], or [1, N] without groups."""
    scale = row_state(weight).scale[None] if weight.spec.group_size is None else weight.params["scale"].t()
    return scale.contiguous()


def level_state(weight: PackedWeight) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return a table of float32 weights [N, V], or scales and zero points [N, G]."""
    if weight.spec.format == "affine":
        return None, weight.params["scale"], weight.params.get("zero_point")
    (table,) = keep(weight, "levels", lambda: (codebook(weight.params, weight.spec.bits)[:, 0].contiguous(),))
    return table, None, None


def _contiguous(int8_table, weight: PackedWeight) -> tuple[Tensor, Tensor]:
    table, scale = int8_table(weight.params, weight.spec)
    return table.contiguous(), scale.to(torch.float32).contiguous()
