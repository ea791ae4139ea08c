"""The page of a model's attention: maps before and after reordering, kept mass against density, incoherence."""

from collections import Counter
from collections.abc import Sequence

from ditquant.evaluation.attention import DENSITIES, HeadMap, share
from ditquant.evaluation.charts import Chart
from ditquant.evaluation.page import Section
from ditquant.evaluation.plots import drawn, plot_tile_maps
from ditquant.evaluation.table import Column, Table

SHOWN = 4  # heads whose maps are drawn
AT = 0.3  # density of the table


def attention_sections(heads: Sequence[HeadMap]) -> list[Section]:
    """Return the sections of the page."""
    gain = sorted(heads, key=lambda head: share(head.before, AT) - share(head.after, AT))
    maps = [
        drawn(plot_tile_maps, {"FHW": head.before, head.order: head.after}, title=f"{head.layer}, head {head.head}")
        for head in gain[:SHOWN]
    ]
    count = len(heads)
    mean = {
        name: [sum(share(tiles(head), d) for head in heads) / count for d in DENSITIES]
        for name, tiles in (("own order", lambda head: head.before), ("chosen order", lambda head: head.after))
    }
    names = [f"{head.layer} {head.head}" for head in heads]
    spans = {
        "own order": [head.incoherence_before for head in heads],
        "chosen order": [head.incoherence_after for head in heads],
    }
    densities = [f"{d:g}" for d in DENSITIES]
    return [
        Section("Maps", maps, "Attention in every tile of 64x64; the heads that reordering helps most."),
        Section(
            "Density",
            [Chart("kept mass, all heads", "tenths of the tiles kept", "share of the attention", mean, densities)],
        ),
        Section(
            "Incoherence",
            [Chart("max / mean of a tile", "head", "incoherence", spans, names, joined=False, scale="log")],
            "What one scale a tile has to span when P is quantized.",
        ),
        Section("Heads", [heads_table(heads)], order_counts(heads)),
    ]


def order_counts(heads: Sequence[HeadMap]) -> str:
    """Say how many heads chose which order."""
    counts = Counter(head.order for head in heads)
    return "Orders: " + ", ".join(f"{order} {n}" for order, n in sorted(counts.items())) + "."


def heads_table(heads: Sequence[HeadMap]) -> Table:
    """Return one row a head."""
    columns = [
        Column("layer", "layer"),
        Column("head", "head"),
        Column("order", "order"),
        Column("before", f"kept mass at {AT:g}, own order", ".3f"),
        Column("after", "in its order", ".3f"),
        Column("incoherence_before", "incoherence, own order", ".3g"),
        Column("incoherence_after", "in its order ", ".3g"),
    ]
    rows = [
        {
            "layer": head.layer,
            "head": head.head,
            "order": head.order,
            "before": share(head.before, AT),
            "after": share(head.after, AT),
            "incoherence_before": head.incoherence_before,
            "incoherence_after": head.incoherence_after,
        }
        for head in heads
    ]
    return Table(columns, rows, "Heads")
