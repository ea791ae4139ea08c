"""The doctor's page: what is ill, charts over the layers, the table, and the channels of the worst layers."""

from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor

from ditquant.evaluation.charts import Chart
from ditquant.evaluation.doctor import Diagnosis, Examination
from ditquant.evaluation.page import Section
from ditquant.evaluation.table import Column, Table

LAYER = "layer, in the model's order"
WORST = 3
POINTS = 100  # of a curve over the channels


def doctor_sections(examined: Examination) -> list[Section]:
    """Return the sections of the page."""
    found = examined.layers
    trouble = [Column("name", "where"), Column("what", "what")]
    ill = [asdict(one) for one in examined.troubles()]
    worst = sorted((one for one in found if one.channels), key=lambda one: -(one.channel_ratio or 0))[:WORST]
    formats = {name: [one.formats.get(name) for one in found] for name in _formats(found)}
    rotations = {
        "none": [one.none_db for one in found],
        "Hadamard": [one.mild_db for one in found],
        "dual": [one.salient_db for one in found],
    }
    channels = {"largest": [one.absmax for one in found], "largest / median": [one.channel_ratio for one in found]}
    tails = {"input": [one.input_kurtosis for one in found], "weight": [one.weight_kurtosis for one in found]}
    names = [one.name for one in found]

    def over_layers(title: str, unit: str, series: dict, scale: str = "linear") -> Chart:
        return Chart(title, LAYER, unit, series, names, joined=False, scale=scale)

    return [
        Section("Trouble", [Table(trouble, ill, "Trouble")] if ill else []),
        Section("Rotations", [over_layers("SQNR of the output, weight and input quantized", "SQNR dB", rotations)]),
        Section("Formats", [over_layers("SQNR of the output, weight quantized", "SQNR dB", formats)]),
        Section(
            "Inputs",
            [
                over_layers("J, the RMS of the input", "J", {"J": [one.rms for one in found]}, "log"),
                over_layers("Channel maxima of the input", "max |x|", channels, "log"),
                over_layers("Kurtosis (3: normal)", "kurtosis", tails, "log"),
            ],
        ),
        Section("Channels", [_channels(one) for one in worst], "The layers whose largest channel stands out most."),
        Section("Layers", [layers_table(found)]),
    ]


def layers_table(found: Sequence[Diagnosis]) -> Table:
    """Return one row a layer."""
    columns = [
        Column("name", "layer"),
        Column("role", "role"),
        Column("rms", "J", ".2f"),
        Column("absmax", "max", ".3g"),
        Column("channel_ratio", "max / median channel", ".3g"),
        Column("input_kurtosis", "kurtosis", ".3g"),
        Column("weight_kurtosis", "weight kurtosis", ".3g"),
        *(Column(name, f"{name}-bit dB".replace("_", " "), ".1f") for name in _formats(found)),
        Column("none_db", "none dB", ".1f"),
        Column("mild_db", "Hadamard dB", ".1f"),
        Column("salient_db", "dual dB", ".1f"),
        Column("by_metric", "by J"),
        Column("by_error", "by error"),
    ]
    rows = [{**one.to_dict(), **one.formats, "by_metric": one.by_metric, "by_error": one.by_error} for one in found]
    return Table(columns, rows, "Layers")


def _formats(found: Sequence[Diagnosis]) -> list[str]:
    return list(dict.fromkeys(name for one in found for name in one.formats))


def _channels(one: Diagnosis) -> Chart:
    title = f"Channel maxima of {one.name}, in falling order"
    curves = {kind: _thinned(channels) for kind, channels in one.channels.items()}
    width = len(next(iter(one.channels.values())))
    x_label = "channel" if width <= POINTS else f"channel, every {width / POINTS:.1f}th"
    return Chart(title, x_label, "max |x|", curves)


def _thinned(channels: Tensor) -> list[float]:
    falling = channels.sort(descending=True).values
    at = [round(i * (len(falling) - 1) / (POINTS - 1)) for i in range(POINTS)] if len(falling) > POINTS else slice(None)
    return falling[at].tolist()
