"""What the user wants of a model's attention: the `attention:` section of a recipe."""

from dataclasses import dataclass

from ditquant.attention.criterion import SELECT, Criterion
from ditquant.attention.rounding import check_bits
from ditquant.errors import DitQuantError
from ditquant.registry import unknown


@dataclass(frozen=True)
class AttentionSpec:
    """PAROAttention: the fraction of tiles to keep (all if None), and the bits of Q Kᵀ and P V (None: floating point).

    `select` is how orders are compared: by the paper's score where tiles are left out, else by its part for
    quantization. The first `own_steps` steps (None: half of them) have masks of their own. `sample` of the rows of
    tiles are looked at to choose orders.
    """

    density: float | None = None
    qk_bits: int | None = None
    pv_bits: int | None = None
    select: str | None = None
    own_steps: int | None = None
    sample: float = 0.25

    def __post_init__(self):
        if self.density is not None:
            check_density(self.density)
        check_bits(self.qk_bits, "qk_bits")
        check_bits(self.pv_bits, "pv_bits")
        if self.density is None and self.qk_bits is None and self.pv_bits is None:
            raise DitQuantError("attention needs a density, qk_bits or pv_bits. Give at least one, or leave it out.")
        if self.select is not None and self.select not in SELECT:
            raise unknown("way to select orders", self.select, SELECT)
        if self.select == "mass" and self.density is None:
            raise DitQuantError("orders are selected by the mass kept at a density: give one.")
        if self.own_steps is not None and (type(self.own_steps) is not int or self.own_steps < 0):
            raise DitQuantError(f"own_steps {self.own_steps!r} is not allowed. Choose 0 or a positive integer.")
        _ = self.criterion

    @property
    def criterion(self) -> Criterion:
        """How orders are compared."""
        return Criterion(self.select or ("quant" if self.density is None else "combined"), sample=self.sample)

    @property
    def name(self) -> str:
        """Short name, for recipes."""
        return "paro" if self.density is None else f"paro{100 * self.density:g}"

    def __str__(self) -> str:
        words = [] if self.density is None else [f"{100 * self.density:g} % of the tiles"]
        words += [f"{name} in {bits} bits" for name, bits in (("QK", self.qk_bits), ("PV", self.pv_bits)) if bits]
        return ", ".join(words)


def check_density(density: float) -> None:
    """Refuse what is no fraction of the tiles."""
    if type(density) not in (int, float) or not 0 < density <= 1:
        raise DitQuantError(f"density {density!r} is not allowed. Choose a number above 0, at most 1.")
