"""The page of a comparison: what was compared, figures, pictures, where the error is, what was quantized."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from ditquant.evaluation.charts import Chart
from ditquant.evaluation.page import Section
from ditquant.evaluation.plots import Plot
from ditquant.evaluation.results import Results
from ditquant.evaluation.sliders import Gallery
from ditquant.evaluation.table import Column, Table, cost_table, differences_table, measures, quality_table

_SPREAD = (
    "±: half of a 95 % interval over the prompts, – where there are too few or some are infinite; shares and "
    "differences have both ends. FID and KID are figures of the whole set and have no interval."
)


def report_sections(results: Results, plots: Sequence[Plot] = ()) -> list[Section]:
    """Return the sections of the page; those that nothing is known for have no blocks."""
    gallery = gallery_of(results)
    _, shown = gallery.size()
    note = "Same prompts and seeds for every model. Move over a picture to change between the two."
    if shown < len(results.prompts):
        note += f" The {shown} most damaged of {len(results.prompts)} prompts; the folder pictures holds all of them."
    return [
        Section("Quality", [quality_table(results), *_differences(results)], _SPREAD),
        Section("Size and speed", [cost_table(results)]),
        Section("Pictures", [gallery] if shown else [], note),
        Section("Error by step", _steps(results)),
        Section("Error by layer", _layers(results)),
        Section("What was quantized", _quantized(results)),
        Section("Plots", plots),
    ]


def gallery_of(results: Results) -> Gallery:
    """Return the pictures, and the figures that they can be sorted by."""
    models = [model for model in results.models if model.images]
    # what every prompt has stands first
    known = [m for m in measures() if any(m.key in model.values for model in models[1:])]
    whole = [m for m in known if any(len(model.values.get(m.key, ())) == len(results.prompts) for model in models[1:])]
    figures = whole + [m for m in known if m not in whole]
    return Gallery(results.prompts, {m.name: m.images for m in models}, figures, {m.name: m.values for m in models[1:]})


def _differences(results: Results) -> list[Table]:
    table = differences_table(results)
    return [table] if table.rows else []


def _steps(results: Results) -> list[Chart]:
    curves = {model.name: model.steps for model in results.models if any(map(math.isfinite, model.steps))}
    title = "SQNR of the prediction at the states of the full-precision trajectory"
    return [Chart(title, "call of the transformer", "SQNR dB", curves)] if curves else []


def _layers(results: Results) -> list[Chart | Table]:
    models = {m.name: {layer.name: layer.sqnr_db for layer in m.layers} for m in results.models if m.layers}
    names = list(dict.fromkeys(name for layers in models.values() for name in layers))
    if not names:
        return []
    title = "SQNR of each quantized layer's output, on inputs of its full-precision layer"
    curves = {model: [layers.get(name) for name in names] for model, layers in models.items()}
    columns = [Column("layer", "layer"), *(Column(str(i), model, ".1f") for i, model in enumerate(models))]
    rows = [{"layer": name} | {str(i): models[m].get(name) for i, m in enumerate(models)} for name in names]
    rows.sort(key=lambda row: min(v for k, v in row.items() if k != "layer" and v is not None) if _known(row) else 1e9)
    chart = Chart(title, "layer, in the model's order", "SQNR dB", curves, names, joined=False)
    return [chart, Table(columns, rows, "SQNR dB of each layer's output")]


def _known(row: Mapping[str, object]) -> bool:
    return any(value is not None for key, value in row.items() if key != "layer")


def _quantized(results: Results) -> list[Table]:
    tables = []
    for model in results.models:
        if not model.layers:
            continue
        counts = Counter(layer.format for layer in model.layers)
        rows = [
            {
                "what": text,
                "modules": count,
                "parameters": sum(layer.parameters for layer in model.layers if layer.format == text),
            }
            for text, count in counts.items()
        ]
        rows += [
            {
                "what": f"{group.kind} in floating point",
                "modules": group.modules,
                "parameters": group.parameters,
                "why": group.reason,
                "which": ", ".join(group.names) + (", ..." if 0 < len(group.names) < group.modules else ""),
            }
            for group in model.kept
        ]
        columns = [
            Column("what", "what"),
            Column("modules", "modules", ","),
            Column("parameters", "parameters", ","),
            Column("why", "why"),
            Column("which", "which"),
        ]
        plan = f", plan {model.facts.plan_hash}" if model.facts.plan_hash else ""
        tables.append(Table(columns, rows, model.name + plan))
    return tables
