"""Compare models with a reference: same prompts, same seeds, one model in memory at a time."""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import torch

from ditquant import distributed
from ditquant.errors import DitQuantError
from ditquant.evaluation.conditions import Conditions, conditions_of
from ditquant.evaluation.generate import Generated, generate, prompt_seeds
from ditquant.evaluation.inventory import Kept, kept, seen_in_calibration
from ditquant.evaluation.layers import LayerProbe, LayerResult
from ditquant.evaluation.measure import Measures
from ditquant.evaluation.networks import Networks
from ditquant.evaluation.results import ModelFacts, ModelResult, Results
from ditquant.evaluation.shared import generate_shared
from ditquant.evaluation.steps import Trajectory, record, step_sqnr_db

log = logging.getLogger(__name__)
STEP_PROMPTS = 8
Loader = Callable[[], Any]
Describe = Callable[[str, Any], ModelFacts]


@dataclass(frozen=True)
class Sampling:
    """Settings of `generate` that all models share; None is left to the pipeline."""

    steps: int | None = None
    guidance: float | None = None
    height: int | None = None
    width: int | None = None
    frames: int | None = None
    batch_size: int = 4


def compare(
    reference: Any | Loader,
    pipelines: Mapping[str, Any | Loader],
    prompts: Sequence[str | int],
    seeds: int | Sequence[int] = 0,
    *,
    sampling: Sampling | None = None,
    reference_name: str = "reference",
    describe: Describe | None = None,
    step_prompts: int = STEP_PROMPTS,
    networks: Networks | None = None,
    check: Callable[[Conditions], None] | None = None,
    progress: bool = True,
) -> Results:
    """Generate with the reference, then with every model, and measure each picture against the reference's.

    A model is a pipeline or a loader without arguments; what a loader made is dropped before the next one is called.
    `describe(name, pipeline)` is asked for a model's facts while it is loaded. The first `step_prompts` prompts give
    the trajectory on which step SQNR and the layers' errors are measured; 0 leaves both out.
    `check` is called with the reference's conditions before anything is painted, and refuses them by an error.
    Ranks share the prompts; the first one measures steps and layers.
    `networks` add LPIPS, CLIPScore, FID and KID; what cannot be measured is left out with a note in the results.
    """
    if reference_name in pipelines:
        raise DitQuantError(f"two models have the name {reference_name!r}. Give every model a name of its own.")
    sampling = sampling or Sampling()
    seeds = prompt_seeds(seeds, len(prompts))
    probed = step_prompts if distributed.is_main() else 0  # the others only help to paint
    probe = _Probe(prompts[:probed], seeds[:probed], sampling)
    measures = Measures(prompts, networks)
    models, notes, found = [], [], Conditions()
    for name, source in {reference_name: reference, **pipelines}.items():
        with _loaded(source) as pipeline:
            if not models:
                found = conditions_of(pipeline)
                if check is not None:
                    check(found)
            facts, made, seen = _run(name, pipeline, prompts, seeds, sampling, describe, probe, progress)
            del pipeline  # else it would still be there when the next one is loaded
        values = {"step_sqnr_db": seen.by_prompt} if seen.by_prompt else {}
        measured, scores = measures(made)
        detail = {"steps": seen.by_step, "layers": seen.layers, "kept": seen.kept, "images": made.images}
        models.append(ModelResult(name, facts, made.seconds, values | measured, scores=scores, **detail))
        notes += seen.notes
    notes += measures.notes
    return Results([str(prompt) for prompt in prompts], seeds, asdict(sampling), models, notes, conditions=found)


@dataclass
class _Seen:
    """What is asked of a loaded model: step SQNR by prompt and step, its layers, what it kept, and warnings."""

    by_prompt: list[float] = field(default_factory=list)
    by_step: list[float] = field(default_factory=list)
    layers: list[LayerResult] = field(default_factory=list)
    kept: list[Kept] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class _Probe:
    """The reference's trajectory and layers on a few prompts, recorded by the first model that it meets."""

    def __init__(self, prompts: Sequence[str | int], seeds: Sequence[int], sampling: Sampling):
        self.prompts, self.seeds = prompts, seeds
        self.options = asdict(sampling) | {"batch_size": max(1, len(prompts)), "progress": False}
        self.trajectory: Trajectory | None = None
        self.layers = LayerProbe()

    def __call__(self, pipeline: Any) -> _Seen:
        """Return what the model is like beside the reference; no errors for the reference itself."""
        if self.trajectory is not None:
            by_prompt, by_step = step_sqnr_db(pipeline, self.trajectory)
            return _Seen(by_prompt, by_step, self.layers.measure(pipeline), kept(pipeline))
        if self.prompts:
            paint = partial(generate, pipeline, self.prompts, seeds=self.seeds, **self.options)
            with self.layers.watching(pipeline):
                self.trajectory = record(pipeline, len(self.prompts), paint)
        return _Seen()


def _run(
    name: str,
    pipeline: Any,
    prompts: Sequence[str | int],
    seeds: list[int],
    sampling: Sampling,
    describe: Describe | None,
    probe: _Probe,
    progress: bool,
) -> tuple[ModelFacts, Generated, _Seen]:
    try:
        made = generate_shared(pipeline, prompts, seeds=seeds, progress=progress, **asdict(sampling))
        facts = ModelFacts() if describe is None else describe(name, pipeline)
        seen = probe(pipeline)
        seen.notes += _overlap(name, pipeline, prompts)
    except DitQuantError as error:
        raise DitQuantError(f"{name}: {error}") from error
    return facts, made, seen


@contextmanager
def _loaded(source: Any | Loader) -> Iterator[Any]:
    """Yield a pipeline; one that a loader made is not kept here, and its memory is given back at the end."""
    # a pipeline can be called as well, but only a pipeline has a bar
    if hasattr(source, "set_progress_bar_config"):
        yield source
        return
    yield source()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _overlap(name: str, pipeline: Any, prompts: Sequence[str | int]) -> list[str]:
    """Warn of prompts that a model was calibrated with."""
    common = seen_in_calibration(pipeline, prompts) if hasattr(pipeline, "components") else []
    if not common:
        return []
    line = (
        f"{name} was calibrated with {len(common)} of these {len(prompts)} prompts, such as {common[0]!r}: "
        "its figures flatter it. Test with other prompts."
    )
    log.warning("%s", line)
    return [line]
