"""Quantize a model block by block: every block sees what the quantized blocks before it make of the recorded calls."""

import logging
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tqdm import tqdm

from ditquant.calibration.collect import check_finite, collect, watched
from ditquant.calibration.curvature import curvatures
from ditquant.calibration.decoded import decoded_once
from ditquant.calibration.forecast import MIB, at_this_pace, group_bytes, passes_of, told_of_calls
from ditquant.calibration.part import Part
from ditquant.calibration.record import Recording, can_walk, empty_recording, record
from ditquant.calibration.store import TensorStore
from ditquant.calibration.walk import Step, Walk, problem_of
from ditquant.calibration.work import WorkFolder
from ditquant.models import family_of
from ditquant.nn import QuantLinear
from ditquant.on_disk import held
from ditquant.progress import bar as progress_bar
from ditquant.progress import minutes, say
from ditquant.stats import LayerStats

log = logging.getLogger(__name__)


def record_parts(
    parts: Sequence[Part],
    run: Callable[[], object],
    store: TensorStore,
    max_calls: int,
    work: WorkFolder | None = None,
) -> dict[str, Recording]:
    """Run the models once and return the recordings of those whose blocks can be run one by one."""
    found: dict[str, Recording] = {}
    new: dict[str, Recording] = {}
    for part in parts:
        family = family_of(part.model)
        if part.data and can_walk(family):
            recording = empty_recording(part.model, family, store)
            known = work is not None and work.load_recording(part.unit("recorded"), recording)
            (found if known else new)[part.name] = recording
    if not new:
        return found
    here = [part for part in parts if part.name in new]
    linears = {f"{p.name}:{name}": linear for p in here for name, linear in p.linears(p.data).items()}
    passes = partial(_passes, here, max_calls)
    with watched(linears, check_finite), told_of_calls(here, run, passes):
        record(new, run, max_calls, here[0].seed, [part.name for part in here if part.curved])
    for part in here:
        recording = new[part.name]
        if not any(one.calls for one in recording.lists):
            raise part.never_reached()
        problem = problem_of(recording)
        if problem:
            log.warning("calibrating %s in one pass: %s", type(part.model).__name__, problem)
            store.drop(recording.refs)
            continue
        found[part.name] = recording
        if work is not None:
            work.save_recording(part.unit("recorded"), recording)
    return found


def _passes(parts: Sequence[Part], max_calls: int, steps: int) -> float:
    return steps + sum(passes_of(part, min(max_calls, steps)) for part in parts)


def quantize_blocks(part: Part, recording: Recording, work: WorkFolder | None = None) -> dict[str, QuantLinear]:
    """Return the quantized layers of a part; the model is as before when it returns or raises."""
    walk, stages = Walk(recording), _stages(part, recording)
    last = max(i for i, stage in enumerate(stages) if stage.data)  # nothing has to be seen behind it
    ready = next((i for i, stage in enumerate(stages) if work is None or not work.done(stage.unit)), len(stages))
    whole = {i for i in range(ready) if work.whole(stages[i].unit, part.linears(stages[i].new))}
    # the results of the last finished block alone are kept: without them the calls are run through all blocks again
    on = bool(ready) and len(whole) == ready and (ready > last or work.restore(stages[ready - 1].unit, walk))
    first = ready if on else 0
    say(_recorded(part, recording, stages, ready, kept=work is not None))
    made: dict[str, QuantLinear] = {}
    with progress_bar(total=len(part.layers), desc="quantizing", unit="layer") as bar:
        for i, (step, stage) in enumerate(zip(walk.steps(), stages, strict=True)):
            if i < first:
                made |= _load_block(part, stage, work, bar)
                continue
            begin = time.perf_counter()
            with held(step.block):
                if i in whole:
                    made |= _load_block(part, stage, work, bar)
                else:
                    made |= _quantize_block(part, walk, step, stage.data, stage.new, bar)
                if i < last:
                    inside = {name: made[name] for name in stage.inside}
                    with part.swapped(inside), decoded_once(inside.values()):
                        walk.run(step, carry=True)
            new = {name: made[name] for name in stage.new}
            if work is not None and i not in whole:
                before = stages[i - 1].unit if i else None
                work.save(stage.unit, new, walk if ready - 1 <= i < last else None, before)
            if work is not None:
                part.let_go(new)
            if i == ready and new:
                left = [name for later in stages[i + 1 :] for name in later.new]
                said = _seconds(part, recording, stages, i + 1)
                at_this_pace(part, time.perf_counter() - begin, stage.new, left, said)
    return made


@dataclass(frozen=True)
class _Stage:
    """The layers of one block: all that are quantized, those that no block before has, those that look at data."""

    unit: str
    inside: list[str]
    new: list[str]
    data: list[str]


def _stages(part: Part, recording: Recording) -> list[_Stage]:
    names = {linear: name for name, linear in part.linears(part.layers).items()}
    stages: list[_Stage] = []
    known: set[str] = set()
    for unit, block in (entry for one in recording.lists for entry in one.blocks):
        inside = [names[module] for module in block.modules() if module in names]
        new = [name for name in inside if name not in known]
        known.update(new)
        stages.append(_Stage(part.unit(unit), inside, new, [name for name in new if name in part.data]))
    return stages


def _load_block(part: Part, stage: _Stage, work: WorkFolder, bar: tqdm) -> dict[str, QuantLinear]:
    bar.update(len(stage.new))
    return work.load(stage.unit, part.linears(stage.new))


def _quantize_block(
    part: Part, walk: Walk, step: Step, data: list[str], new: list[str], bar: tqdm
) -> dict[str, QuantLinear]:
    seen: dict[str, LayerStats] = {}
    if data:
        seed = part.seed + zlib.crc32(step.name.encode())
        run = partial(walk.run, step, carry=False)
        seen = collect(part.linears(data), run, seed=seed, grams=part.grams)
        curved = {name: linear for name, linear in part.linears(part.curved).items() if name in seen}
        for name, found in (curvatures(walk.recording, curved, seed) if curved else {}).items():
            seen[name].curvature = found
    made = {}
    for name in new:
        made[name] = part.make(name, seen)
        seen.pop(name, None)
        bar.update()
    return made


def _seconds(part: Part, recording: Recording, stages: list[_Stage], ready: int) -> float:
    """Return about how long the blocks that are left take."""
    calls = len(recording.lists[0].calls)
    left = [name for stage in stages[ready:] for name in stage.new]
    return recording.seconds_per_call * passes_of(part, calls, ready) + part.fit_seconds(left)


def _recorded(part: Part, recording: Recording, stages: list[_Stage], ready: int, kept: bool) -> str:
    """Say what was recorded, and what is left to do; `kept` recordings lie in a work folder too."""
    store, calls = recording.store, len(recording.lists[0].calls)
    disk = store.disk_bytes + kept * (store.disk_bytes + store.memory_bytes)
    statistics = max(group_bytes(part, stage.new) for stage in stages)
    return (
        f"{part.name or type(part.model).__name__}: {len(part.layers)} layers in {len(stages)} blocks"
        + (f", {ready} of them finished before" if ready else "")
        + f"; {calls} recorded calls take {store.memory_bytes / MIB:.0f} MiB of memory and "
        f"{disk / MIB:.0f} MiB of disk, a block's statistics up to {statistics / MIB:.0f} MiB; "
        f"about {minutes(_seconds(part, recording, stages, ready))} min are left"
    )
