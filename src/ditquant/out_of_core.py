"""Quantize a model that is larger than the memory: a block is read when it is called, and let go of after it."""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from ditquant import shards
from ditquant.atomic import atomic_folder
from ditquant.calibration import can_walk, layer_places
from ditquant.config_source import forget_source
from ditquant.effort import fit_seconds
from ditquant.engine import match, quantize
from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import transformers_of
from ditquant.max_memory import Budget, foresee_memory, gib, give_back_what_is_freed
from ditquant.models import family_of
from ditquant.on_disk import leave_on_disk, tensor_places
from ditquant.progress import minutes, say
from ditquant.quantizers import reads_curvature
from ditquant.recipe import Recipe
from ditquant.sizes import foresee
from ditquant.skeleton import empty_model
from ditquant.sources import Source, loading
from ditquant.specs import QuantPlan
from ditquant.stored import cast_back, only_variant, tensor_files

READ_BYTES = 1e9  # a second, of files


def quantize_on_disk(
    source: Source,
    recipe: Recipe,
    output: Path,
    limit: int,
    *,
    prompts: Sequence[str | int] | None = None,
    seed: int = 0,
    settings: Mapping[str, float | None] | None = None,
    work_dir: Path | None = None,
    overwrite: bool = False,
) -> tuple[Any, QuantPlan]:
    """Quantize the model in a folder and save it, with about `limit` bytes of memory.

    What is saved has the bits that `quantize` makes in float32 on the CPU. Finished blocks lie in the work folder, a
    temporary one beside the output by default. Returns the model, whose blocks have no values, and the plan.

    Raises:
        DitQuantError: what `quantize` raises; a limit that a block does not fit into; a recipe that needs the whole
            model (`joint`); weights of a variant alone.
    """
    give_back_what_is_freed()
    folder = source.local()
    loaded = load(source, folder)
    parts = {"": loaded} if isinstance(loaded, nn.Module) else loaded.components
    modules = [part for part in parts.values() if isinstance(part, nn.Module)]
    transformers = transformers_of(loaded)
    for model in transformers.values():
        _check(model, recipe, prompts is not None)
    budget = foresee_memory(modules, transformers.values(), recipe, prompts is not None, limit)
    budget.check()
    say(_forecast(transformers, recipe, folder, budget, prompts is not None))
    with _work(work_dir, output) as work:
        calibration = {} if prompts is None else {"prompts": prompts, "settings": settings}
        plan = quantize(loaded, recipe, seed=seed, work_dir=work, recorded_bytes=budget.left // 2, **calibration)
        with atomic_folder(output, overwrite) as part_folder:
            _copy(source, folder, part_folder, set(transformers))
            for name, model in transformers.items():
                cast_back(model, folder / name)
                places = tensor_places(folder / name) | layer_places(work, name)
                shards.save(model, places, part_folder / name, min(shards.SHARD_BYTES, limit // 16))
            forget_source(part_folder)
    return loaded, plan


def _check(model: nn.Module, recipe: Recipe, data: bool) -> None:
    """Refuse what needs a whole model in memory."""
    if recipe.attention is not None:
        raise DitQuantError("an attention plan needs the whole model in memory. Leave --max-memory or the plan out.")
    if data and any(reads_curvature(rule.quantizer_options) for _, rule in match(model, recipe)):
        raise DitQuantError(
            "compensation over outputs (joint) needs the whole model in memory. "
            "Leave --max-memory out, or choose a recipe without it, such as lrq-gptq-w4a8."
        )
    if data and not can_walk(family_of(model)):
        raise DitQuantError(
            f"the blocks of {type(model).__name__} cannot be run one by one, and to calibrate them all at once "
            "takes more memory than the model. Leave --max-memory out, or the prompts."
        )


def load(source: Source, folder: Path) -> Any:
    """Return a pipeline, or a component, whose blocks lie on disk."""
    import diffusers

    with loading(source.name):
        if not source.is_pipeline:
            return _leave(folder, "diffusers", source.class_name)
        named = {n: v for n, v in source.index.items() if isinstance(v, list) and tensor_files(folder / n)}
        parts = {name: _leave(folder / name, *entry) for name, entry in named.items()}
        return diffusers.DiffusionPipeline.from_pretrained(folder, **parts, local_files_only=True)


def _leave(folder: Path, library: str, class_name: str) -> nn.Module:
    if only_variant(folder) is not None:
        raise DitQuantError(f"{folder} holds weights of variant {only_variant(folder)!r} alone. Save it without one.")
    return leave_on_disk(empty_model(folder, library, class_name), folder)


def _copy(source: Source, folder: Path, output: Path, transformers: set[str]) -> None:
    """Copy what a pipeline has beside its transformers."""
    if source.is_pipeline:
        shutil.copyfile(folder / "model_index.json", output / "model_index.json")
        for name, entry in source.index.items():
            if isinstance(entry, list) and name not in transformers and (folder / name).is_dir():
                shutil.copytree(folder / name, output / name)


@contextmanager
def _work(work_dir: Path | None, output: Path) -> Iterator[Path]:
    if work_dir is not None:
        yield work_dir
        return
    output.resolve().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.work-", dir=output.resolve().parent) as work:
        yield Path(work)


def _forecast(transformers: Mapping[str, nn.Module], recipe: Recipe, folder: Path, budget: Budget, data: bool) -> str:
    """Say how much there is to do, and what it takes."""
    matched = {name: match(model, recipe) for name, model in transformers.items()}
    made = sum(foresee(transformers[name], found).total_bytes for name, found in matched.items())
    stored = sum(file.stat().st_size for name in matched for file in tensor_files(folder / name))
    fits = (fit_seconds(r, x.out_features, x.in_features, data) for found in matched.values() for x, r in found)
    seconds = sum(fits) + 3 * stored / READ_BYTES
    return (
        f"{sum(map(len, matched.values()))} layers of {gib(stored)} in files, {gib(budget.limit)} of memory: {budget}, "
        f"{gib(budget.left)} for recorded calls and what a block computes; about {gib(2 * made)} of disk, half of it "
        f"for the time being; about {minutes(seconds)} min to fit, and every call of the model reads its blocks again"
    )
