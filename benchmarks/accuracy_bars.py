"""The bars of `accuracy.py`: a rival counts as beaten where the paired 95 % interval is above 0, and not by its mean.

An interval over captions needs two of them: of a single sample nothing is shown. What was measured with one seed says
so, as the seed draws the calibration and the rotations.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean

from accuracy_found import Found, table
from accuracy_rows import METHODS, OURS

from ditquant.evaluation.intervals import paired_interval

PEERS = ("rtn", "smoothquant", "quarot", "duquant", "vidit-q")
RIVALS = tuple(m for m in METHODS if m not in OURS)
HARD = ("w4a4", "w4a8", "w3a8", "w3a4")


@dataclass(frozen=True)
class Duel:
    """A method and a rival on the samples of the seeds that both were measured with; bits are those a weight."""

    rival: str
    mine: list[float]
    theirs: list[float]
    seeds: int
    bits: float
    their_bits: float

    @property
    def ends(self) -> tuple[float, float]:
        """Interval of how far the method is above the rival; NaN of a single sample."""
        return paired_interval(self.mine, self.theirs) if len(self.mine) > 1 else (math.nan, math.nan)

    @property
    def won(self) -> bool:
        return self.ends[0] > 0

    @property
    def lost(self) -> bool:
        return mean(self.mine) <= mean(self.theirs)

    @property
    def fewer_bits(self) -> bool:
        """True if the rival has fewer bits than the method."""
        return self.their_bits < self.bits


def duels(found: Found, method: str, bits: str, others: Iterable[str], their_bits: str) -> list[Duel]:
    """Return the duels that were measured."""
    made = []
    for rival in others:
        mine, theirs = found.paired(method, bits, rival, their_bits)
        seeds = len(found.seeds(method, bits) & found.seeds(rival, their_bits))
        sizes = [found.size("methods", m, b) for m, b in ((method, bits), (rival, their_bits)) if mine]
        made += [Duel(rival, mine, theirs, seeds, *sizes)] if mine else []
    return made


def strongest(fought: Sequence[Duel]) -> Duel:
    """Return the duel with the rival of the highest mean."""
    return max(fought, key=lambda duel: mean(duel.theirs))


def verdict(fought: Sequence[Duel], met: str = "met") -> str:
    """Say whether all rivals are beaten."""
    beaten, lost = sum(duel.won for duel in fought), sum(duel.lost for duel in fought)
    if beaten < len(fought):
        return f"{'**missed**' if lost else '**not shown**'}: {beaten} of {len(fought)} are beaten"
    return f"{met}, of one seed" if min(duel.seeds for duel in fought) == 1 else met


def bars(found: Found) -> str:
    """Write the table of the bars, whatever the bits of the rivals."""
    lines = []
    for bits in HARD:
        lines.append(_beats(found, "lrq", bits, PEERS, bits))
        lines += [_beats(found, method, bits, RIVALS, bits) for method in OURS if found.rows("methods", method, bits)]
    lines.append(_beats(found, "lrq-plus", "w3a8", RIVALS, "w4a8"))
    lines.append(_beats(found, "lrq-plus", "w4a8", ["rtn"], "w8a8"))
    lines += _painted(found)
    head = ["bar, whatever the bits", "measured", "difference, 95 % interval", "with fewer bits", "seeds", ""]
    unmet = [line[0] for line in lines if "**" in line[-1]]
    return table(head, lines) + (f"\nMissed, or not shown: {'; '.join(unmet)}.\n" if unmet else "")


def _beats(found: Found, method: str, bits: str, others: Iterable[str], their_bits: str) -> list[str]:
    fought = duels(found, method, bits, others, their_bits)
    if not fought:
        return [f"{method} {bits.upper()}", "not measured", "", "", "", ""]
    best = strongest(fought)
    against = f"{best.rival}" if len(fought) == 1 else f"{len(fought)} others"
    shown = f"{mean(best.mine):.2f} against {best.rival}'s {mean(best.theirs):.2f}"
    return [
        f"{method} {bits.upper()} beats {against} at {their_bits.upper()}",
        f"{shown} ({best.bits:.2f} and {best.their_bits:.2f} bits)",
        _span(best.ends, " dB"),
        f"{sum(duel.fewer_bits for duel in fought)} of {len(fought)}",
        str(best.seeds),
        verdict(fought),
    ]


def _painted(found: Found) -> list[list[str]]:
    """Judge that lrq-plus loses nothing within the interval, which ends above or at 0 then; say what it leaves open."""
    full, plus = (found.values("captions", n, "w4a8", "accuracy") for n in ("full precision", "lrq-plus"))
    if len(full) < 2 or len(full) != len(plus):
        return []
    low, high = paired_interval(plus, full)
    within = f"met within the interval, which does not exclude a loss of {-100 * low:.1f} points"
    return [
        [
            "lrq-plus W4A8 shows what was asked for as often",
            f"{100 * mean(plus):.1f} % of pictures against {100 * mean(full):.1f} %",
            _span((100 * low, 100 * high), " points", 1),
            "",
            str(len({row["seed"] for row in found.rows("captions", "lrq-plus", "w4a8")})),
            "met" if low >= 0 else "**missed**" if high < 0 else within,
        ]
    ]


def _span(ends: tuple[float, float], unit: str, digits: int = 2) -> str:
    low, high = ends
    return f"{low:+.{digits}f} to {high:+.{digits}f}{unit}" if math.isfinite(low) else "one sample"


def by_bits(found: Found) -> str:
    """Write, for every form of lrq-plus and width, which rivals have fewer bits, and a sentence on the bar of bits."""
    every = {(m, bits): duels(found, m, bits, RIVALS, bits) for bits in found.bits() for m in OURS}
    every = {form: fought for form, fought in every.items() if fought}
    if not every:
        return ""
    lines = [_form(f"{method} {bits.upper()}", fought) for (method, bits), fought in every.items()]
    head = ["", "bits", "rivals of as many bits or more", "beaten", "rivals of fewer bits", "beaten"]
    text = "### lrq-plus at no more bits a weight\n\n" + table([*head, "beats all the others at no more bits"], lines)
    missed = sum("**missed**" in line[-1] for line in lines)
    heavy, light = ([line[0] for line in lines if "**" in line[i]] for i in (3, 5))
    return (
        f"{text}\nThe bar that lrq-plus beats all the others at no more bits a weight is missed in {missed} of "
        f"{len(lines)} rows; the rivals of as many bits or more are all beaten{_except(heavy)}, "
        f"those of fewer bits are all beaten{_except(light)}.\n"
    )


def _form(name: str, fought: Sequence[Duel]) -> list[str]:
    """Return the row of a form of lrq-plus at one width, rivals in the order of their bits."""
    ranked = sorted(fought, key=lambda duel: duel.their_bits)
    fewer = [duel for duel in ranked if duel.fewer_bits]
    others = [duel for duel in ranked if not duel.fewer_bits]
    bar = f"**missed**: {len(fewer)} of {len(fought)} have fewer bits" if fewer else verdict(fought)
    return [name, f"{fought[0].bits:.3f}", *_side(others), *_side(fewer), bar]


def _except(names: Sequence[str]) -> str:
    return f" but in {', '.join(names)}" if names else ""


def _side(fought: Sequence[Duel]) -> list[str]:
    if not fought:
        return ["none", ""]
    best, names = strongest(fought), ", ".join(f"{duel.rival} {duel.their_bits:.3f}" for duel in fought)
    return [names, f"{verdict(fought, 'all')}; {_span(best.ends, ' dB')} over {best.rival}"]
