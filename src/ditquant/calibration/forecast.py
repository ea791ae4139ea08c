"""What a run takes, said before it begins, and again as soon as more is known of it."""

import inspect
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from ditquant.calibration.curvature import PROBES
from ditquant.calibration.part import Part, statistics_bytes
from ditquant.calibration.prompts import PromptRun
from ditquant.calibration.record import WHOLE_CALLS, can_walk
from ditquant.calibration.store import MEMORY_LIMIT
from ditquant.models import family_of, walk_blocks
from ditquant.pipelines import settings_of
from ditquant.progress import DELAY_S, minutes, say

MIB = 1 << 20
SURE = 1.5  # a forecast that is off by less stands


def announce(
    parts: Sequence[Part], run: Callable[[], object] | None, max_calls: int, recorded_bytes: int | None = None
) -> None:
    """Say how much there is to do, and what it takes, before anything is run; nothing of what takes a moment."""
    for part in parts:
        if (run is not None and part.data) or part.fit_seconds(part.layers) > DELAY_S:
            say(_forecast(part, run, max_calls, MEMORY_LIMIT if recorded_bytes is None else recorded_bytes))


def _forecast(part: Part, run: Callable[[], object] | None, max_calls: int, limit: int) -> str:
    groups = blocks_of(part)
    line = f"{part.name or type(part.model).__name__}: {len(part.layers)} layers"
    line += f" in {len(groups)} blocks" if groups else ""
    if run is not None and part.data:
        statistics = max(group_bytes(part, group) for group in groups or [list(part.layers)])
        line += f"; {_painting(run)}"
        if groups:
            line += f", at most {max_calls} calls are recorded, up to {limit / MIB:.0f} MiB in memory and more on disk"
        line += f"; statistics take up to {statistics / MIB:.0f} MiB"
    return f"{line}; about {minutes(part.fit_seconds(part.layers))} min to fit"


def blocks_of(part: Part) -> list[list[str]]:
    """Return the layers of every block, if they can be run one by one."""
    family = family_of(part.model)
    if not can_walk(family):
        return []
    paths = [path for path, _ in walk_blocks(part.model, family)]
    return [[name for name in part.layers if name.startswith(f"{path}.")] for path in paths]


def group_bytes(part: Part, names: Sequence[str]) -> int:
    """Return the memory of the statistics of some layers at once."""
    seen = [name for name in names if name in part.data]
    return sum(statistics_bytes(part.layers[n], n in part.grams, n in part.curved) for n in seen)


def steps_of(run: Callable[[], object] | None) -> int | None:
    """Return how many denoising steps a run takes for all its prompts; None where that is not known."""
    if not isinstance(run, PromptRun):
        return None
    default = inspect.signature(run.pipeline.__call__).parameters.get("num_inference_steps")
    steps = settings_of(run.pipeline, **run.settings).get("num_inference_steps", default and default.default)
    return len(run) * steps if type(steps) is int else None


def _painting(run: Callable[[], object]) -> str:
    steps = steps_of(run)
    if steps is None:
        return "the model is run"
    count = len(run)
    return f"{count} prompt{'s' * (count > 1)} of {steps // count} steps {'are' if count > 1 else 'is'} painted"


@contextmanager
def told_of_calls(parts: Sequence[Part], run: Callable[[], object], passes: Callable[[int], float]) -> Iterator[None]:
    """Say what a run takes in all once the second call of a model is over: the first one sets things up.

    `passes(steps)` is how many calls of the model everything amounts to, the denoising steps of all prompts included.
    """
    steps, begun = steps_of(run), []
    if steps is None:
        yield
        return

    def enter(*_: object) -> None:
        begun.append(time.perf_counter())

    def leave(*_: object) -> None:
        if len(begun) == min(2, steps):
            seconds = time.perf_counter() - begun[-1]
            fit = sum(part.fit_seconds(part.layers) for part in parts)
            say(f"a call of the model takes {seconds:.2g} s: about {minutes(passes(steps) * seconds + fit)} min in all")

    model = parts[0].model
    handles = [model.register_forward_pre_hook(enter), model.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def passes_of(part: Part, recorded: int, ready: int = 0) -> float:
    """Return how many calls of the model running its blocks one by one amounts to, `ready` blocks being done.

    A block runs to be watched, which takes as long again where Gram matrices are summed, and to carry on. For the
    curvature of its outputs some calls run through the whole model, and gradients on average through half of it.
    """
    groups = blocks_of(part)
    left = groups[ready:]
    watched = sum(any(name in part.data for name in group) for group in left)
    curved = sum(any(name in part.curved for name in group) for group in left)
    walked = recorded * watched * (3 if part.grams else 2) / max(len(groups), 1)
    return walked + curved * min(recorded, WHOLE_CALLS) * (1 + PROBES / 2)


def at_this_pace(part: Part, spent: float, done: Sequence[str], left: Sequence[str], said: float) -> None:
    """Say how long the rest takes, by what the layers that are done took, where `said` seconds are far from that."""
    seconds = spent * part.fit_seconds(left) / max(part.fit_seconds(done), 1e-9)
    if minutes(seconds) > 1 and not 1 / SURE < seconds / max(said, 1e-9) < SURE:
        say(f"{part.name or type(part.model).__name__}: at this pace about {minutes(seconds)} min are left")
