"""What `q_dit.py` measures: the steps of the ladder, group sizes with and without two defects, and searched plans."""

from dataclasses import dataclass, replace
from pathlib import Path

from ditquant.recipe import Recipe
from ditquant.rule import Rule
from ditquant.search import load_found
from ditquant.specs import ActSpec

GROUPS = (32, 48, 64, 96, 128, 192, 384)
BITS = ("w4a8", "w3a8")
FULL_ROW = "full row"
BLOCK = 128  # columns between two updates of GPTQ's weights: there a stale group is none
DRAWN = (32, 48, 128)
DAMPINGS = (0.007, 0.0085, 0.01, 0.0115, 0.013)  # of GPTQ, whose default is in the middle


@dataclass(frozen=True)
class Row:
    """One plan: `group` of the weights, activations `static` (per tensor or group) or dynamic per token and group.

    `plan` is a folder of `ditquant search`, whose rules are taken as they are; `damping` is GPTQ's own by default.
    """

    name: str
    bits: str
    quantizer: str = "qdit"
    group: int | None = None
    static: bool = False
    defect: str = ""
    plan: str = ""
    damping: float | None = None

    def rules(self) -> list[Rule]:
        """Return the rules that make it."""
        if self.plan:
            return list(load_found(self.plan).recipe.rules)
        return [self._grouped(rule) for rule in Recipe.load(f"{self.quantizer}-{self.bits}").rules]

    def _grouped(self, rule: Rule) -> Rule:
        if self.damping is not None and rule.quantizer == "gptq":
            rule = replace(rule, quantizer_options=rule.quantizer_options | {"damping": self.damping})
        if rule.activation is not None:
            acts = ActSpec(rule.activation.bits, "group" if self.group else "token", self.group, symmetric=False)
            return replace(rule, weight=replace(rule.weight, group_size=self.group), activation=acts)
        return replace(rule, weight=replace(rule.weight, group_size=self.group)) if rule.weight.group_size else rule


FULL = Row("full precision", "", quantizer="")
PRODUCTS = Row("bfloat16 products alone", "", quantizer="")


def ladder(bits: str) -> list[Row]:
    """The paper's steps; the last one is a searched plan."""
    return [
        Row("RTN, one scale a row, static activations", bits, static=True),
        Row("+ groups of 128", bits, group=128, static=True),
        uniform(bits, 128),
    ]


def uniform(bits: str, group: int | None, quantizer: str = "qdit", defect: str = "") -> Row:
    """One group size everywhere; None for full rows."""
    words = [quantizer, FULL_ROW if group is None else f"g = {group}", defect]
    return Row(", ".join(word for word in words if word), bits, quantizer, group, defect=defect)


def scan(bits: str) -> list[Row]:
    """Every group size with both quantizers, then the same with each defect where that changes anything."""
    sound = [uniform(bits, g, quantizer) for quantizer in ("qdit", "qdit-gptq") for g in (*GROUPS, None)]
    clamped = [uniform(bits, g, quantizer, "clamped") for quantizer in ("qdit", "qdit-gptq") for g in GROUPS]
    return [*sound, *(uniform(bits, g, "qdit-gptq", "stale") for g in reversed(GROUPS) if g % BLOCK), *clamped]


def draws(group: int) -> list[Row]:
    """Rows that differ in little but how their errors happen to fall: GPTQ with dampings near each other."""
    own = uniform(BITS[0], group, "qdit-gptq")
    return [own if d == 0.01 else replace(own, name=f"{own.name}, damping {d}", damping=d) for d in DAMPINGS]


def searched(plans: list[Path]) -> list[Row]:
    """The plans of searches, by their recipes' bits."""
    names = [load_found(path).recipe.name for path in plans]
    return [
        Row(f"searched ({path.name})", next(bits for bits in BITS if bits in name), plan=str(path))
        for path, name in zip(plans, names, strict=True)
    ]
