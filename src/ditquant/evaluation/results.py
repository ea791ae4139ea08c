"""What a comparison found: one value a prompt for each model and metric, and what it takes to repeat it."""

import json
import math
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ditquant.atomic import atomic_file
from ditquant.errors import DitQuantError
from ditquant.evaluation.intervals import interval
from ditquant.evaluation.inventory import Kept
from ditquant.evaluation.layers import LayerResult
from ditquant.threshold import read_thresholds

SCHEMA_VERSION = 3
_MEANS = ("caption_accuracy", "clip_score", "step_sqnr_db")  # shares, scores, and decibels that no single sample rules


def statistic_of(metric: str) -> str:
    """Say which statistic over the prompts stands for a metric."""
    return "mean" if metric in _MEANS else "median"


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
    model that has thresholds.
    """

    prompts: list[str]
    seeds: list[int]
    sampling: dict[str, Any]
    models: list[ModelResult]
    notes: list[str] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=lambda: versions())
    schema_version: int = SCHEMA_VERSION
    verdict: list[str] = field(default_factory=list)

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
                "sampling": self.sampling,
                "prompts": self.prompts,
                "seeds": self.seeds,
                "notes": self.notes,
                "verdict": self.verdict,
                "models": models,
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
            DitQuantError: prompts, seeds, settings or references that differ, or a model that is in both.
        """
        models, notes = list(self.models), list(self.notes)
        for other in others:
            _check_equal(self, other)
            taken = {model.name for model in models}
            for model in other.models[1:]:
                if model.name in taken:
                    raise DitQuantError(f"{model.name!r} is in both reports. Leave one of them out.")
            models += other.models[1:]
            notes += [note for note in other.notes if note not in notes]
        return Results(self.prompts, self.seeds, self.sampling, models, notes, self.versions)

    @staticmethod
    def load(path: str | Path) -> "Results":
        """Read results.json.

        Raises:
            DitQuantError: not a results file, or one of a newer schema.
        """
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
            return _from_dict(data, path)
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise DitQuantError(f"{path} is not a results file ({reason}). Give a results.json.") from error


def versions() -> dict[str, str]:
    """Return the versions of what the numbers depend on."""
    packages = ("ditquant", "torch", "diffusers", "transformers")
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in packages}


def _from_dict(data: dict[str, Any], path: str | Path) -> Results:
    version = data["schema_version"]
    if version > SCHEMA_VERSION:
        raise DitQuantError(f"{path} has schema version {version}, this ditquant reads {SCHEMA_VERSION}. Update it.")
    models = [
        ModelResult(
            model["name"],
            ModelFacts(
                *(model[key] for key in ("recipe", "plan_hash", "bits_per_weight", "file_bytes")),
                tuple(map(str, read_thresholds(model.get("thresholds", ()), f"'thresholds' of {model['name']}"))),
            ),
            model["seconds"],
            {name: _numbers(values) for name, values in model["values"].items()},
            _numbers(model.get("steps", [])),
            [_layer(layer) for layer in model.get("layers", [])],
            [Kept(**group | {"names": tuple(group["names"])}) for group in model.get("kept", [])],
            {name: float(value) for name, value in model.get("scores", {}).items()},
        )
        for model in data["models"]
    ]
    notes, verdict = data.get("notes", []), data.get("verdict", [])
    return Results(data["prompts"], data["seeds"], data["sampling"], models, notes, data["versions"], version, verdict)


def _check_equal(one: Results, other: Results) -> None:
    """Refuse reports whose figures cannot stand in one table."""
    if one.prompts != other.prompts:
        differ = [i for i, (a, b) in enumerate(zip(one.prompts, other.prompts, strict=False)) if a != b]
        where = f"the first difference is prompt {differ[0]}" if differ else "one has more"
        raise DitQuantError(
            f"the reports have unequal sets of prompts ({len(one.prompts)} and {len(other.prompts)}; {where}). "
            "Paint the same prompts in both."
        )
    if one.seeds != other.seeds:
        raise DitQuantError("the reports have unequal seeds. Paint the same prompts with the same --seed in both.")
    settings = [{k: v for k, v in r.sampling.items() if k != "batch_size"} for r in (one, other)]
    if settings[0] != settings[1]:
        raise DitQuantError(f"the reports have unequal settings: {settings[0]} and {settings[1]}.")
    if one.models[0].name != other.models[0].name:
        names = f"{one.models[0].name!r} and {other.models[0].name!r}"
        raise DitQuantError(f"the reports compare with different references: {names}.")


def _layer(data: dict[str, Any]) -> LayerResult:
    return LayerResult(**data | {"sqnr_db": None if data["sqnr_db"] is None else float(data["sqnr_db"])})


def _numbers(values: Sequence[float | str]) -> list[float]:
    return [float(value) for value in values]


def strict(data: Any) -> Any:
    """Make strict JSON data: infinite and undefined numbers become "inf", "-inf" and "nan"."""
    if isinstance(data, dict):
        return {key: strict(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [strict(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
