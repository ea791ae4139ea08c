"""`ditquant quantize`: a model in, a quantized checkpoint out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditquant import distributed
from ditquant.cli.choose import Budget, check_attention, read_attention, spend, with_attention
from ditquant.cli.options import (
    MAX_SEED,
    Attention,
    Density,
    Device,
    Dtype,
    Frames,
    Guidance,
    Model,
    Overwrite,
    Pixels,
    PromptFile,
    PvBits,
    QkBits,
    Steps,
    check_output,
    pick_device,
    pick_dtype,
    read_prompts,
)
from ditquant.errors import DitQuantError

if TYPE_CHECKING:
    from ditquant.recipe import Recipe
    from ditquant.sources import Source
    from ditquant.specs import QuantPlan


def quantize(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the quantized model.")],
    recipe: Annotated[
        str | None, typer.Option(help="A recipe's name (see `ditquant recipes`) or a YAML file; lrq-w4a8 by default.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Folder of `ditquant search`: deploy its plan, in place of a recipe.")
    ] = None,
    prompts: PromptFile = None,
    attention: Attention = None,
    density: Density = None,
    qk: QkBits = None,
    pv: PvBits = None,
    bits: Annotated[float | None, typer.Option(help="Bits a weight, all-in, that --recipe auto may spend.")] = None,
    latency: Annotated[
        float | None, typer.Option(help="Or milliseconds here, of the layers of one call of the transformer.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of calibration and rotations.")] = 0,
    dtype: Dtype = "auto",
    device: Device = "auto",
    steps: Steps = None,
    guidance: Guidance = None,
    height: Pixels = None,
    width: Pixels = None,
    frames: Frames = None,
    work_dir: Annotated[
        Path | None, typer.Option(help="Folder that keeps what is finished: the same command goes on there.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option(help="Read the model block by block and take no more memory, such as 4GiB.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Quantize MODEL with a recipe and save it.

    --prompts calibrate: eight are usual, and not those you test with. They are generated with --steps, --guidance,
    --height, --width and --frames, the pipeline's own by default. A run with --work-dir that was killed goes on at
    the block where it was; the folder is deleted when the model is saved. --recipe auto chooses the bits of every layer
    by how much the prediction feels its error, within --bits or --latency, and shows what other budgets would bring.
    --max-memory quantizes models that are larger than the memory, on the CPU and in float32; every call reads its
    blocks again.

    --attention paro --density 0.3 --qk 8 --pv 8 lets the tokens of every head attend in an order of their own, leaves
    tiles out and multiplies integers; without --recipe the weights stay as they are.
    """
    wanted, budget = read_attention(attention, density, qk, pv), Budget(bits, latency)
    if plan is not None:
        given = {
            "attention": attention,
            "recipe": recipe,
            "prompts": prompts,
            "bits": bits,
            "latency": latency,
            "work-dir": work_dir,
            "steps": steps,
            "max-memory": max_memory,
        }
        deploy_plan(model, plan, output, given, pick_device(device), dtype, overwrite)
        return

    import torch

    from ditquant import sources
    from ditquant.calibration.work import check_work
    from ditquant.engine import quantize as run
    from ditquant.max_memory import parse_size
    from ditquant.out_of_core import quantize_on_disk

    texts = None if prompts is None else read_prompts(prompts)
    rules = with_attention(recipe, wanted, budget, texts)
    device = pick_device(device)
    compute = pick_dtype(dtype, device)
    source = sources.find(model)
    check_output(output, overwrite, source.folder, prompts, work_dir)
    if work_dir is not None:
        check_work(work_dir)
    sources.check_calibration(source, texts)
    settings = {"steps": steps, "guidance": guidance, "height": height, "width": width, "frames": frames}
    if texts is None and any(value is not None for value in settings.values()):
        raise DitQuantError("steps, guidance and sizes are for calibration. Give --prompts, or leave them out.")
    check_recipe(source, rules)
    check_attention(source, rules, texts)
    if max_memory is not None:
        if compute != torch.float32 or device != "cpu" or budget.option or distributed.count() > 1:
            raise DitQuantError("--max-memory is for one process, the CPU, float32 and a recipe. Leave out the rest.")
        if rules.attention is not None:
            raise DitQuantError("attention is fitted with the whole model in memory. Leave --max-memory out.")
        limit = parse_size(max_memory)
        on_disk: dict[str, Any] = {"prompts": texts, "seed": seed, "settings": settings}
        on_disk |= {"work_dir": work_dir, "overwrite": overwrite}
        loaded, made = quantize_on_disk(source, rules, output, limit, **on_disk)
        finish(loaded, source, output, rules.name, made, work_dir)
        return
    loaded = sources.load(source, compute, device)
    if budget.option and texts is not None:
        rules = spend(loaded, budget, texts, seed, settings, work_dir)
        inside = work_dir and work_dir / rules.name  # beside the ways that were measured for any budget
    else:
        inside = work_dir
    made = run(loaded, rules, prompts=texts, seed=seed, work_dir=inside, settings=settings)
    if not distributed.is_main():
        return
    save(loaded, source, output, overwrite)
    finish(loaded, source, output, rules.name, made, work_dir)


def finish(
    loaded: Any, source: Source, output: Path, recipe: str, plan: QuantPlan, work_dir: Path | None = None
) -> None:
    """Delete the work, and say what was made."""
    from ditquant.calibration.work import clear_work

    if work_dir is not None:
        clear_work(work_dir)
    for line in summary(loaded, source, recipe):
        print(line)
    print(f"saved to {output} (plan {plan.hash()})")


def deploy_plan(
    model: str, plan: Path, output: Path, given: dict[str, Any], device: str, dtype: str, overwrite: bool
) -> None:
    """Quantize MODEL with the plan of a search and save it; `given` are options that the plan answers."""
    from ditquant import sources
    from ditquant.search.folder import deploy, load_found
    from ditquant.search.model import model_digest

    if extra := [f"--{name}" for name, value in given.items() if value is not None]:
        raise DitQuantError(f"--plan holds recipe and calibration. Leave {', '.join(extra)} out.")
    found = load_found(plan)
    source = sources.find(model)
    check_output(output, overwrite, source.folder, plan)
    check_recipe(source, found.recipe)
    sources.check_pipeline(source)
    loaded = sources.load(source, pick_dtype(dtype, device), device)
    made = deploy(loaded, found, model_digest(loaded))
    if not distributed.is_main():
        return
    save(loaded, source, output, overwrite)
    finish(loaded, source, output, found.recipe.name, made)


def check_recipe(source: Source, recipe: Recipe) -> None:
    """Refuse a recipe that does not fit the model, before anything is downloaded or loaded."""
    from ditquant.engine import match
    from ditquant.skeleton import skeleton

    for name, config in source.transformers().items():
        if config.get("quantization_config") is not None:
            raise DitQuantError(f"{source.name!r} is quantized already. Give the full-precision model.")
        match(skeleton(config, name or source.name), recipe)


def save(loaded: Any, source: Source, output: Path, overwrite: bool) -> None:
    """Save in the dtypes the source is stored in, so that what was not quantized keeps its size and its bits."""
    import torch

    from ditquant.atomic import atomic_folder
    from ditquant.config_source import forget_source
    from ditquant.quiet import quiet_libraries
    from ditquant.stored import cast_back

    loaded.to("cpu")
    folder = source.local()
    parts = {"": loaded} if isinstance(loaded, torch.nn.Module) else loaded.components
    for name, part in parts.items():
        if isinstance(part, torch.nn.Module):
            cast_back(part, folder / name)
    with atomic_folder(output, overwrite) as part_folder, quiet_libraries():
        loaded.save_pretrained(part_folder)
        keep_entries(part_folder / "model_index.json", source.index)
        forget_source(part_folder)


def keep_entries(file: Path, before: dict[str, Any]) -> None:
    """Add to a pipeline's index what diffusers does not save again, such as the class names of DiT."""
    if file.exists():
        index = json.loads(file.read_text(encoding="utf-8"))
        lost = {key: value for key, value in before.items() if key not in index}
        file.write_text(json.dumps(index | lost, indent=2) + "\n", encoding="utf-8")


def summary(loaded: Any, source: Source, recipe: str) -> list[str]:
    """Say for each transformer what it became."""
    from ditquant.integrations.attention import plan_of
    from ditquant.integrations.diffusers import transformers_of
    from ditquant.nn import QuantLinear
    from ditquant.sizes import measure

    lines = []
    for name, part in transformers_of(loaded).items():
        if (plan := plan_of(part)) is not None:
            keeps = "all tiles" if plan.masks is None else f"{100 * plan.density:g} % of the tiles"
            bits = "".join(f", {n} in {b} bits" for n, b in (("QK", plan.qk_bits), ("PV", plan.pv_bits)) if b)
            lines.append(
                f"{name or source.class_name}: attention on {plan.grid} in {plan.blocks} layers keeps {keeps}{bits}"
            )
        size = measure(part)
        layers = [m for m in part.modules() if isinstance(m, QuantLinear)]
        if not layers:
            continue
        full = 2 * sum(m.in_features * m.out_features + (0 if m.bias is None else m.out_features) for m in layers)
        lines.append(
            f"{name or source.class_name}: {len(layers)} layers with {recipe}, "
            f"{size.bits_per_weight:.2f} bits a weight all-in, {size.total_bytes / 1e6:.1f} MB "
            f"instead of {(full + size.other_bytes) / 1e6:.1f} MB at 16 bits"
        )
    return lines
