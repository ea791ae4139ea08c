"""What GPTQ asks of a format: settle a group's parameters when it is reached, then round its columns one by one."""

from typing import Protocol

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from ditquant.formats.base import Params
from ditquant.formats.twin_log import codebook
from ditquant.quantizers.affine_fit import fit_affine, round_affine, zero_point
from ditquant.quantizers.twin_log import fit_twin_log, place, thresholds
from ditquant.registry import Registry
from ditquant.specs import WeightSpec

Rows = Int64[Tensor, " d"] | slice
ALL = slice(None)


class Rounding(Protocol):
    """A format's rounding of one weight [N, K]; made from (weight, spec, error_weight [K], clip)."""

    params: Params

    def enter(self, group: int, columns: Float[Tensor, "g N"]) -> None:
        """Begin a group of channels in their natural order, compensated for all columns rounded before."""

    def round(self, column: Float[Tensor, " d"], rows: Rows = ALL) -> tuple[UInt8[Tensor, " d"], Float[Tensor, " d"]]:
        """Return the codes of one entry of each row, and what they decode to, in the group entered last."""


class AffineRounding:
    """Scales and zero points are those of the compensated weights."""

    def __init__(
        self, weight: Float[Tensor, "N K"], spec: WeightSpec, error_weight: Float[Tensor, " K"], clip: str | None
    ):
        self._spec, self._clip = spec, clip
        shape = (len(weight), spec.groups(weight.shape[1]))
        self._error_weight = error_weight.view(shape[1], -1)
        self.params = {"scale": torch.zeros(shape)}
        if not spec.symmetric:
            self.params["zero_point"] = torch.zeros(shape, dtype=torch.uint8)

    def enter(self, group: int, columns: Float[Tensor, "g N"]) -> None:
        """Fit the group."""
        self._group = fit_affine(
            columns.T[:, None].contiguous(), self._spec, self._clip, self._error_weight[group, None]
        )
        for name, values in self._group.items():
            self.params[name][:, group] = values[:, 0]

    def round(self, column: Float[Tensor, " d"], rows: Rows = ALL) -> tuple[UInt8[Tensor, " d"], Float[Tensor, " d"]]:
        """Round to the nearest step."""
        group = {name: values[rows] for name, values in self._group.items()}
        codes = round_affine(column[:, None, None], group, self._spec)[:, 0, 0]
        return codes, (codes - zero_point(group, self._spec)[:, 0]) * group["scale"][:, 0]


class TwinLogRounding:
    """The code book of every row and group is that of the weight as it was, fitted by the cost of columns' errors."""

    def __init__(
        self, weight: Float[Tensor, "N K"], spec: WeightSpec, error_weight: Float[Tensor, " K"], clip: str | None
    ):
        self.params = fit_twin_log(weight, spec, error_weight)
        self._books = codebook(self.params, spec.bits)

    def enter(self, group: int, columns: Float[Tensor, "g N"]) -> None:
        """Take the group's code books."""
        self._values = self._books[:, group]
        self._cuts = thresholds(self._values)

    def round(self, column: Float[Tensor, " d"], rows: Rows = ALL) -> tuple[UInt8[Tensor, " d"], Float[Tensor, " d"]]:
        """Take the nearest level that has the weight's sign."""
        codes = place(column[:, None], self._cuts[rows])
        return codes[:, 0], self._values[rows].gather(1, codes.long())[:, 0]


ROUNDINGS: Registry[type[Rounding]] = Registry("format of quantizer 'gptq'")
ROUNDINGS.update(affine=AffineRounding, twin_log=TwinLogRounding)
