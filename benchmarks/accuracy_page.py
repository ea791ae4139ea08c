"""The page and the figure of `accuracy.py`: tables of means with intervals, and a verdict on every bar."""

from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

from accuracy_model import DIGITS, SHAPES
from accuracy_rows import ABLATIONS, BITS, CALIBRATION, CALIBRATION_PROMPTS, METHODS, OURS, SALIENT, SALIENT_RECIPES

from ditquant.evaluation.intervals import interval, paired_interval

PEERS = ("rtn", "smoothquant", "quarot", "duquant", "vidit-q")
HARD = ("w4a4", "w4a8", "w3a8", "w3a4")
HEADS = {
    SHAPES: """# Results

`python benchmarks/accuracy.py` measures all of this on `pixart-shapes`, and writes this page, the figure and
`benchmarks/results/accuracy.json`. Step SQNR in dB, the mean over held-out captions of all seeds; in brackets half of a
95 % bootstrap interval over captions. See the benchmark's head for what a seed is, and `methods/lrq_plus.md` for what
limits each width; `results_digits.md` has the methods on another model. W4A8, W3A8, W4A4 and W3A4, RTN's W8A8 and the
caption accuracy have three seeds, everything else one. Methods are compared on the seeds that both were measured with.

Bits a weight are all-in: codes, scales, transforms, low-rank factors and biases. The model is 256 channels wide, so
that whatever belongs to a channel weighs four to five times what it does in PixArt-XL: a branch of rank 32 costs 3.2
bits a weight here and 0.7 there, and DuQuant's two stored matrices cost 10 bits here and 0.4 there. Twin-Log's five
numbers a row make 0.2 bits more than one scale. lrq-plus has a branch of SVDQuant's rank, and fewer bits than SVDQuant
since its scales belong to rows; lrq-plus-lean, for 8-bit activations, has no branch, and 0.2 bits more than RTN.
""",
    DIGITS: """# Results on digits

`python benchmarks/accuracy.py --model dit-digits` measures this, and writes this page, the figure and
`benchmarks/results/accuracy_digits.json`: the methods of `results.md` on a class-conditional model of real handwritten
digits, 384 channels wide. Step SQNR in dB, the mean over 8 samples a seed of five classes that did not calibrate; in
brackets half of a 95 % bootstrap interval over samples. Bits a weight are all-in. W8A8 has one seed but for RTN.

A third of the weights modulates norms, a layer in every block. At 3 bits these make nearly all of the error where no
recipe compensates their rounding; lrq-plus gives them a branch of rank 8 (`methods/lrq_plus.md`).
""",
}


class Found:
    """Values by table, name and bits, all seeds together."""

    def __init__(self, rows: Iterable[dict[str, Any]]):
        self._rows = sorted(rows, key=lambda row: row["seed"])

    def rows(self, table: str, name: str, bits: str) -> list[dict[str, Any]]:
        return [r for r in self._rows if (r["table"], r["name"], r["bits_asked"]) == (table, name, bits)]

    def values(self, table: str, name: str, bits: str, figure: str = "step_sqnr_db") -> list[float]:
        return [value for row in self.rows(table, name, bits) for value in row[figure]]

    def bits(self) -> list[str]:
        """Widths that any method was measured at."""
        return [bits for bits in BITS if any(self.rows("methods", m, bits) for m in METHODS)]

    def db(self, method: str, bits: str) -> float:
        """Mean of a method; NaN if it was not measured."""
        values = self.values("methods", method, bits)
        return mean(values) if values else float("nan")

    def seeds(self, method: str, bits: str) -> set[int]:
        """Seeds that a method was measured with."""
        return {row["seed"] for row in self.rows("methods", method, bits)}

    def paired(self, method: str, bits: str, other: str, their_bits: str) -> tuple[list[float], list[float]]:
        """Values of two methods, of the seeds that both were measured with."""
        common = self.seeds(method, bits) & self.seeds(other, their_bits)
        both = (self.rows("methods", method, bits), self.rows("methods", other, their_bits))
        mine, theirs = ([v for row in rows if row["seed"] in common for v in row["step_sqnr_db"]] for rows in both)
        return mine, theirs

    def size(self, table: str, name: str, bits: str) -> float:
        return mean(row["bits"] for row in self.rows(table, name, bits))


def cell(values: list[float]) -> str:
    """Show a mean and half of its interval."""
    if not values:
        return ""
    low, high = interval(values)
    return f"{mean(values):.2f} ({(high - low) / 2:.2f})"


def table(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + "\n"


def section(title: str, head: list[str], lines: list[list[str]]) -> str:
    """Show a table under its title; nothing of it where nothing was measured."""
    return f"\n### {title}\n\n" + table(head, lines) if lines else ""


def methods_table(found: Found) -> str:
    lines = []
    for bits in found.bits():
        best = max(METHODS, key=lambda m: (found.db(m, bits) == found.db(m, bits), found.db(m, bits)))
        cells = []
        for method in METHODS:
            text = cell(found.values("methods", method, bits))
            cells.append(f"**{text}**" if method == best and text else text)
        lines.append([bits.upper(), *cells])
    return table(["", *METHODS], lines)


def sizes_table(found: Found) -> str:
    lines = []
    for bits in found.bits():
        shown = [f"{found.size('methods', m, bits):.2f}" if found.rows("methods", m, bits) else "" for m in METHODS]
        lines.append([bits.upper(), *shown])
    return table(["bits a weight", *METHODS], lines)


def bars(found: Found) -> str:
    lines, others = [], [m for m in METHODS if m not in OURS]
    for bits in HARD:
        lines.append(_beats(found, "lrq", bits, PEERS, bits))
        lines += [_beats(found, method, bits, others, bits) for method in OURS if found.rows("methods", method, bits)]
    lines.append(_beats(found, "lrq-plus", "w3a8", others, "w4a8"))
    lines.append(_beats(found, "lrq-plus", "w4a8", ["rtn"], "w8a8"))
    full, plus = (found.values("captions", n, "w4a8", "caption_accuracy") for n in ("full precision", "lrq-plus"))
    if full and len(full) == len(plus):
        low, high = paired_interval(plus, full)
        said = "met" if high >= 0 else "**missed**"
        lines.append(
            [
                "lrq-plus W4A8 loses no caption accuracy",
                f"{100 * mean(plus):.1f} % of pictures against {100 * mean(full):.1f} %",
                f"{100 * low:+.1f} to {100 * high:+.1f} points",
                str(len({row["seed"] for row in found.rows("captions", "lrq-plus", "w4a8")})),
                said,
            ]
        )
    return table(["bar", "measured", "difference, 95 % interval", "seeds", ""], lines)


def _beats(found: Found, method: str, bits: str, others: Iterable[str], their_bits: str) -> list[str]:
    pairs = {m: found.paired(method, bits, m, their_bits) for m in others}
    others = [m for m, (mine, _) in pairs.items() if mine]
    if not others:
        return [f"{method} {bits.upper()}", "not measured", "", "", ""]
    best = max(others, key=lambda m: mean(pairs[m][1]))
    mine, theirs = pairs[best]
    low, high = paired_interval(mine, theirs)
    beaten = [m for m in others if mean(pairs[m][1]) < mean(pairs[m][0])]
    seeds = len(found.seeds(method, bits) & found.seeds(best, their_bits))
    against = f"{others[0]}" if len(others) == 1 else f"{len(others)} others"
    verdict = "met" if len(beaten) == len(others) else f"**missed**: {len(beaten)} of {len(others)} are beaten"
    bits_shown = f"{found.size('methods', method, bits):.2f} and {found.size('methods', best, their_bits):.2f} bits"
    return [
        f"{method} {bits.upper()} beats {against} at {their_bits.upper()}",
        f"{mean(mine):.2f} against {best}'s {mean(theirs):.2f} ({bits_shown})",
        f"{low:+.2f} to {high:+.2f} dB",
        str(seeds),
        verdict,
    ]


def ablations(found: Found) -> str:
    text = ""
    for name, (bits, variants) in ABLATIONS.items():
        lines = [
            [v, cell(values), f"{found.size(name, v, bits):.2f}"]
            for v in variants
            if (values := found.values(name, v, bits))
        ]
        text += section(f"{name}, {bits.upper()}", ["", "step SQNR, dB", "bits a weight"], lines)
    lines = [[str(n), cell(v)] for n in CALIBRATION_PROMPTS if (v := found.values(CALIBRATION, str(n), "w4a8"))]
    return text + section(f"{CALIBRATION}, W4A8", ["prompts", "step SQNR, dB"], lines)


def salient(found: Found) -> str:
    names = [*SALIENT_RECIPES, *METHODS]
    lines = [[n, cell(values)] for n in names if (values := found.values(SALIENT, n, "w4a4"))]
    text = section(f"{SALIENT}, W4A4", ["", "step SQNR, dB"], lines)
    chosen = found.rows(SALIENT, "adaptive, by J", "w4a4")
    plain = found.rows("Rotation (smoothing, Twin-Log)", "adaptive, by J", "w4a4")
    if chosen and plain:
        injected, before, after = (set(x) for x in (chosen[0]["injected"], plain[0]["dual"], chosen[0]["dual"]))
        said = "exactly the injected ones" if after - before == injected and before <= after else "**not** those"
        text += f"\nInjected: {', '.join(f'`{n}`' for n in sorted(injected))}. Adaptive rotation by J gives the dual "
        text += f"rotation to {len(before)} layers of the model as it is and to {len(after)} of the injected one; "
        text += f"the layers that are new: {said}.\n"
    return text


def write_page(rows: list[dict[str, Any]], path: Path, missing: int, model: str) -> None:
    """Write the page of a model, and the figure beside it; `missing` rows are still to be measured."""
    found = Found(rows)
    image = f"images/{'accuracy' if model == SHAPES else 'accuracy_digits'}.png"
    draw(found, path.parent / image)
    parts = [HEADS[model], f"![step SQNR by method and bits]({image})\n", methods_table(found), sizes_table(found)]
    if missing:
        said = f"**{missing} of {missing + len(rows)} rows are not measured yet**: the same command goes on."
        parts.insert(1, f"{said} A bar counts what is there.\n")
    parts += ["## Bars\n", bars(found)]
    if model == SHAPES:
        parts += ["## Ablations", ablations(found), salient(found)]
    path.write_text("\n".join(parts).rstrip() + "\n")


def draw(found: Found, path: Path) -> None:
    """Plot every method over the bits."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = sorted(found.bits())
    figure, axes = plt.subplots(figsize=(9, 5))
    width = 0.9 / len(METHODS)
    for i, method in enumerate(METHODS):
        at = [x + (i - len(METHODS) / 2) * width for x in range(len(shown))]
        axes.bar(at, [found.db(method, bits) for bits in shown], width, label=method, color=f"C{i}")
    axes.set_xticks(range(len(shown)), [bits.upper() for bits in shown])
    axes.set_ylabel("step SQNR, dB")
    axes.legend(ncols=5, fontsize=8, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
