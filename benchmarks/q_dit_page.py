"""The tables of `q_dit.py`, written between two marks of `docs/methods/q_dit.md`."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from q_dit_rows import BITS, BLOCK, DAMPINGS, DRAWN, GROUPS, draws, ladder, uniform

BEGIN, END = "<!-- benchmarks/q_dit.py -->", "<!-- end -->"
PAPER = ("225.5", "13.77", "6.64", "6.40")
Line = Mapping[str, Any]


class Measured:
    """Lines by bits and name, and differences by both names."""

    def __init__(self, data: Mapping[str, Sequence[Line]]):
        self.lines = {(line["bits"], line["name"]): line for line in data["rows"]}
        self.differences = {(d["bits"], d["name"], d["against"]): d for d in data["differences"]}
        self.plans = {bits: [n for b, n in self.lines if b == bits and n.startswith("searched")] for bits in BITS}

    def error(self, bits: str, name: str) -> str:
        """Show a mean error times 10⁵ with its interval."""
        line = self.lines.get((bits, name))
        if line is None:
            return "not measured"
        return f"{1e5 * line['error']:.1f} [{1e5 * line['low']:.1f}, {1e5 * line['high']:.1f}]"

    def change(self, bits: str, name: str, against: str) -> str:
        """Show a paired difference in percent."""
        found = self.differences.get((bits, name, against))
        if found is None:
            return ""
        return f"{100 * found['change']:+.1f} [{100 * found['low']:+.1f}, {100 * found['high']:+.1f}]"

    def of(self, bits: str, name: str, key: str, form: str) -> str:
        line = self.lines.get((bits, name))
        return "" if line is None else format(line[key], form)


def write_page(data: Mapping[str, Any], path: Path) -> None:
    """Put the tables into the page."""
    found = Measured(data)
    parts = [ladders(found), rivals(found), sizes(found), spread(found), layers(data["stale layers"])]
    text = path.read_text(encoding="utf-8") if path.exists() else f"{BEGIN}\n{END}\n"
    head, rest = text.split(BEGIN)
    tail = rest.split(END)[1]
    path.write_text(f"{head}{BEGIN}\n\n" + "\n".join(parts) + f"\n{END}{tail}", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def ladders(found: Measured) -> str:
    text = ""
    for bits in BITS:
        names = [row.name for row in ladder(bits)] + found.plans[bits][:1]
        labels = [
            "RTN, one scale a row, static activations",
            "+ groups of 128",
            "+ dynamic activations",
            "+ allocation",
        ]
        rows = []
        for i, name in enumerate(names):
            before = found.change(bits, name, names[i - 1]) if i else ""
            counts = [
                found.of(bits, name, key, form) for key, form in (("accuracy", ".3f"), ("fd", ".3f"), ("samples", "d"))
            ]
            rows.append([labels[i], found.error(bits, name), before, *counts, PAPER[i] if bits == "w4a8" else ""])
        head = ["step", "error x 10⁵", "change, %", "accuracy", "Fréchet distance", "samples", "paper, FID"]
        text += f"**Ladder, {bits.upper()}**\n\n" + table(head, rows) + "\n"
    return text


def rivals(found: Measured) -> str:
    rows = []
    for bits in BITS:
        for plan in found.plans[bits]:
            for group in (128, 192, 384, None):
                other = uniform(bits, group).name
                change = found.change(bits, plan, other) or "not measured"
                rows.append(
                    [
                        bits.upper(),
                        other.removeprefix("qdit, "),
                        found.error(bits, other),
                        plan.removeprefix("searched ").strip("()"),
                        found.error(bits, plan),
                        change,
                    ]
                )
    head = ["", "uniform plan", "its error x 10⁵", "searched plan", "its error x 10⁵", "searched against uniform, %"]
    return "**Searched against uniform plans of no higher cost**\n\n" + table(head, rows)


def sizes(found: Measured) -> str:
    text = ""
    for bits, (quantizer, label) in product(BITS, (("qdit", "RTN"), ("qdit-gptq", "GPTQ"))):
        rows = []
        for i, group in enumerate((*GROUPS, None)):
            name = uniform(bits, group, quantizer).name
            smaller = uniform(bits, GROUPS[i - 1], quantizer).name if i else ""
            cells = [str(group or "full row"), found.error(bits, name), found.change(bits, name, smaller)]
            cells.append(found.change(bits, uniform(bits, group, quantizer, "clamped").name, name))
            if quantizer != "qdit":
                stale = uniform(bits, group, quantizer, "stale").name
                same = group is None or group % BLOCK == 0
                cells.append("the same" if same else found.change(bits, stale, name))
            rows.append([*cells, found.of(bits, name, "samples", "d")])
        head = ["g", "error x 10⁵", "against the next smaller g, %", "clamped, %"]
        head += ["stale, %"] if quantizer != "qdit" else []
        text += f"\n**Group sizes, {bits.upper()}, {label}**\n\n" + table([*head, "samples"], rows)
    return text


def spread(found: Measured) -> str:
    rows = [[str(group), *(found.error(BITS[0], row.name) for row in draws(group))] for group in DRAWN]
    title = f"**GPTQ, {BITS[0].upper()}, error x 10⁵ by damping**"
    return f"{title}\n\n" + table(["g", *map(str, DAMPINGS)], rows)


def layers(stale: Mapping[str, Mapping[int, float]]) -> str:
    rows = [[bits.upper(), *(f"{100 * change:+.1f}" for change in found.values())] for bits, found in stale.items()]
    title = "**Stale groups against fresh ones, error of the layers' outputs on what they were fitted to, %**"
    return f"{title}\n\n" + table(["", *(f"g = {g}" for g in next(iter(stale.values())))], rows)
