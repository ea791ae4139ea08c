"""What a comparison found: one value a prompt for each model and metric, and what it takes to repeat it."""

import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ditquant.atomic import atomic_file
from ditquant.errors import DitQuantError, first_line
from ditquant.evaluation.conditions import Conditions
from ditquant.evaluation.entry import Entry
from ditquant.evaluation.intervals import interval
from ditquant.evaluation.inventory import Kept
from ditquant.evaluation.joining import check_counts, check_references, check_runs, unlike
from ditquant.evaluation.layers import LayerResult
from ditquant.evaluation.pairs import differences, statistic_of
from ditquant.threshold import Threshold

SCHEMA_VERSION = 3
_OF_SOME = ("step_sqnr_db",)  # measured on the first prompts only


@dataclass(frozen=True)
class ModelFacts:
    """What is known of a model before it runs; None where it is not known.

    `thresholds` are those of its recipe, as they are typed.
    """

    recipe: str | None = None
    plan_hash: str | None = None
    bits_per_weight: float | None = None
    file_bytes: int | None = None
    thresholds: tuple[str, ...] = ()


@dataclass
class ModelResult:
    """One model: `values[metric]` holds one number a prompt, `steps` the SQNR of its prediction at every step.

    `scores` hold one number for the whole set of pictures, such as FID. `layers` are the quantized ones with their
    error, `kept` what stayed in floating point and why. Its pictures are kept beside the JSON, not in it.
    """

    name: str
    facts: ModelFacts
    seconds: float
    values: dict[str, list[float]] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    layers: list[LayerResult] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    scores: dict[str, float] = field(default_factory=dict)
    images: list[np.ndarray] = field(default_factory=list, repr=False)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return median and mean of every metric, and the 95 % interval of the one that stands for it."""
        found = {}
        for name, values in self.values.items():
            low, high = interval(values, statistic_of(name))
            found[name] = {
                "median": statistics.median(values),
                "mean": sum(values) / len(values),
                "low": low,
                "high": high,
            }
        return found


@dataclass
class Results:
    """A comparison; the first model is the reference, `sampling` the settings that all of them ran with.

    `notes` are warnings, and metrics that were left out with the reason; `verdict` is a line of go or no-go for each
    model that has thresholds. `conditions` are those of the reference.
    """

    prompts: list[str]
    seeds: list[int]
    sampling: dict[str, Any]
    models: list[ModelResult]
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    schema_version: int = SCHEMA_VERSION
    verdict: list[str] = field(default_factory=list)
    conditions: Conditions = field(default_factory=Conditions)

    def to_dict(self) -> dict[str, Any]:
        """Return strict JSON data; infinite and undefined numbers become "inf", "-inf" and "nan"."""
        models = [
            {
                "name": model.name,
                **asdict(model.facts),
                "seconds": model.seconds,
                "values": model.values,
                "scores": model.scores,
                "steps": model.steps,
                "layers": [asdict(layer) for layer in model.layers],
                "kept": [asdict(group) for group in model.kept],
                "summary": model.summary(),
            }
            for model in self.models
        ]
        return strict(
            {
                "schema_version": self.schema_version,
                "versions": self.versions,
                **asdict(self.conditions),
                "sampling": self.sampling,
                "prompts": self.prompts,
                "seeds": self.seeds,
                "notes": self.notes,
                "verdict": self.verdict,
                "models": models,
                "differences": [asdict(difference) for difference in differences(self.models)],
            }
        )

    def save(self, path: str | Path, overwrite: bool = False) -> None:
        """Write results.json."""
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        with atomic_file(path, overwrite) as part:
            part.write_text(text + "\n", encoding="utf-8")

    def joined(self, others: Sequence["Results"]) -> "Results":
        """Return these results with the models of others that ran the same prompts, seeds and settings.

        Raises:
            DitQuantError: prompts, seeds, settings, dtypes or references that differ, or a model that is in both.
        """
        check_runs(self, others)
        check_references(self, others)
        check_counts(self, others)
        models = [*self.models, *(model for other in others for model in other.models[1:])]
        notes = [*self.notes, *(note for other in others for note in other.notes), *unlike(self, others)]
        return replace(self, models=models, notes=list(dict.fromkeys(notes)), verdict=[])

    @staticmethod
    def load(path: str | Path) -> "Results":
        """Read results.json.

        Raises:
            DitQuantError: not a results file, or one of a newer schema.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise DitQuantError(f"{path} is not a results file ({reason}). Give a results.json.") from error
        return _read(Entry(str(path), data))


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    packages = ("ditquant", "torch", "diffusers", "transformers")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def _read(file: Entry) -> Results:
    version = file["schema_version"].whole()
    if version > SCHEMA_VERSION:
        raise DitQuantError(
            f"{file.file} has schema version {version}, this ditquant reads {SCHEMA_VERSION}. Update it."
        )
    prompts = file["prompts"].list(Entry.text)
    seeds = file["seeds"].list(Entry.whole)
    if not prompts or len(seeds) != len(prompts):
        raise file["seeds"].wrong(f"a list of {max(len(prompts), 1)}, one for each prompt")
    models = file["models"].list(partial(_model, prompts=len(prompts)))
    if not models or len({model.name for model in models}) < len(models):
        raise file["models"].wrong("a list of models with different names, the reference first")
    return Results(
        prompts,
        seeds,
        {name: _setting(value) for name, value in file["sampling"].mapping().items()},
        models,
        file.get("notes", []).list(Entry.text),
        {name: value.text() for name, value in file["versions"].mapping().items()},
        version,
        file.get("verdict", []).list(Entry.text),
        Conditions(*(file.get(key.name, None).maybe(Entry.text) for key in fields(Conditions))),
    )


def _model(data: Entry, prompts: int) -> ModelResult:
    name = data["name"].text()
    facts = ModelFacts(
        data["recipe"].maybe(Entry.text),
        data["plan_hash"].maybe(Entry.text),
        data["bits_per_weight"].maybe(Entry.finite),
        data["file_bytes"].maybe(Entry.whole),
        tuple(data.get("thresholds", []).list(_threshold)),
    )
    values = {metric: found.list(Entry.number) for metric, found in data["values"].mapping().items()}
    for metric, found in values.items():
        few = metric in _OF_SOME and 0 < len(found) <= prompts
        if len(found) != prompts and not few:
            raise data["values"][metric].wrong(f"a list of {prompts}, one number for each prompt")
    return ModelResult(
        name,
        facts,
        data["seconds"].finite(),
        values,
        data.get("steps", []).list(Entry.number),
        data.get("layers", []).list(_layer),
        data.get("kept", []).list(_kept),
        {metric: value.number() for metric, value in data.get("scores", {}).mapping().items()},
    )


def _layer(data: Entry) -> LayerResult:
    name, kind = data["name"].text(), data["format"].text()
    return LayerResult(name, kind, data["parameters"].whole(), data["sqnr_db"].maybe(Entry.number))


def _kept(data: Entry) -> Kept:
    numbers = data["modules"].whole(), data["parameters"].whole()
    return Kept(data["kind"].text(), data["reason"].text(), *numbers, tuple(data["names"].list(Entry.text)))


def _setting(data: Entry) -> Any:
    if data.value is None or isinstance(data.value, str):
        return data.maybe(Entry.text)
    return data.value if isinstance(data.value, int) and data.number() is not None else data.number()


def _threshold(data: Entry) -> str:
    try:
        return str(Threshold.parse(data.text()))
    except DitQuantError:
        raise data.wrong("a threshold such as 'step_sqnr_db>=20'") from None


def strict(data: Any) -> Any:
    """Make strict JSON data: infinite and undefined numbers become "inf", "-inf" and "nan"."""
    if isinstance(data, dict):
        return {key: strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [strict(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
