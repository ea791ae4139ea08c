"""The page and the figure of `accuracy.py`: tables of means with intervals, the bars, the ablations."""

from pathlib import Path
from statistics import mean
from typing import Any

from accuracy_bars import bars, by_bits
from accuracy_found import Found, table
from accuracy_model import DIGITS, SHAPES
from accuracy_rows import ABLATIONS, CALIBRATION, CALIBRATION_PROMPTS, METHODS, SALIENT, SALIENT_RECIPES

from ditquant.evaluation.intervals import interval

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
`benchmarks/results/accuracy_digits.json`: all that `results.md` has, on a class-conditional model of real handwritten
digits, 384 channels wide. Step SQNR in dB, the mean over 8 samples a seed of five classes that did not calibrate; in
brackets half of a 95 % bootstrap interval over samples. Bits a weight are all-in. W4A8, W3A8, W4A4 and W3A4, RTN's W8A8
and whether a picture shows the class asked for (by the shipped classifier) have three seeds, everything else one.

A third of the weights modulates norms, a layer in every block. At 3 bits these make nearly all of the error where no
recipe compensates their rounding; lrq-plus gives them a branch of rank 8 (`methods/lrq_plus.md`).

Twin-Log whose gain is not mended makes all outputs a little too small. Such errors have one sign in every layer and add
up: in one role alone (values, attention outputs, either feed-forward layer, modulation) it costs 0.1 to 1.2 dB at W3A8,
in all of them 8.1 dB (ablations below).
""",
}
BARS = """## Bars

A rival counts as beaten where the whole interval of the paired difference is above 0.
"""


def cell(values: list[float]) -> str:
    """Show a mean and half of its interval, which a single sample does not have."""
    if len(values) < 2:
        return "".join(f"{value:.2f} (one sample)" for value in values)
    low, high = interval(values)
    return f"{mean(values):.2f} ({(high - low) / 2:.2f})"


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
        text += f"\nInjected: {', '.join(f'`{n}`' for n in sorted(injected))}. With one seed adaptive rotation by J "
        text += f"gives the dual rotation to {len(before)} layers of the model as it is and to {len(after)} of the "
        text += f"injected one; the layers that are new: {said}.\n"
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
    parts += [BARS, bars(found), by_bits(found), "## Ablations", ablations(found), salient(found)]
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
