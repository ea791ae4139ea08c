"""What `ditquant inspect --prompts` shows: which rotation both ways of choosing would give every layer, and why."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from ditquant.cli.show import console, printed
from ditquant.errors import DitQuantError

if TYPE_CHECKING:
    from torch import Tensor

    from ditquant.recipe import Recipe, Rule
    from ditquant.sources import Source
    from ditquant.stats import LayerStats

KIND = "adaptive_rotation"


def show_rotations(source: Source, recipe: Recipe, prompts: list[Any]) -> None:
    """Run the prompts, and print J and the output error under each rotation for every layer that adapts its own.

    Raises:
        DitQuantError: the recipe has no adaptive rotation, or the model cannot run prompts.
    """
    import torch

    from ditquant import sources
    from ditquant.calibration import collect, run_prompts
    from ditquant.engine import match
    from ditquant.integrations.diffusers import transformers_of

    sources.check_calibration(source, prompts)
    pipeline = sources.load(source, torch.float32)
    for name, part in transformers_of(pipeline).items():
        rules = {layer.name: r for layer, r in match(part, recipe) if any(t.kind == KIND for t in r.transforms)}
        if not rules:
            raise DitQuantError(f"recipe {recipe.name!r} has no {KIND} to choose. Leave --prompts out.")
        modules = {f"{name}:{layer}": part.get_submodule(layer) for layer in rules}
        seen = collect(modules, partial(run_prompts, pipeline, prompts))
        reports = {}
        with torch.no_grad():
            for layer, rule in rules.items():
                if (stats := seen.get(f"{name}:{layer}")) is not None:
                    weight = part.get_submodule(layer).weight.detach().float()  # type: ignore[operator]
                    reports[layer] = rotation_report(weight, rule, stats)
        show_reports(name, reports)


def rotation_report(weight: Tensor, rule: Rule, stats: LayerStats) -> dict[str, Any]:
    """Apply what the rule does before the rotation, and return what `adaptive.describe` says."""
    from ditquant.transforms.adaptive import describe
    from ditquant.transforms.fitters import FITTERS

    for spec in rule.transforms:
        if spec.kind == KIND:
            return describe(weight, stats, **{k: v for k, v in spec.options.items() if k != "select"})
        transform = FITTERS[spec.kind](weight, stats, **spec.options)
        weight, stats = transform.absorb(weight), stats.transformed(transform)
    raise DitQuantError(f"the rule of {rule.target!r} has no {KIND}.")


def show_reports(name: str, reports: dict[str, dict[str, Any]]) -> None:
    """Print a row a layer: J, both choices, and the output's SQNR without, with the mild and the salient rotation."""
    numbers = ("J", "none dB", "mild dB", "salient dB")
    table = printed("layer", *numbers, "by metric", "by error", right=numbers, title=f"{name}: rotation of each layer")
    for layer, found in reports.items():
        values = [found["metric"], found["none_db"], found["mild_db"], found["salient_db"]]
        table.add_row(layer, *(f"{value:.2f}" for value in values), found["by_metric"], found["by_error"])
    out = console()
    out.print(table)
    salient = [sum(r[by] == "fast_dual_rotation" for r in reports.values()) for by in ("by_metric", "by_error")]
    out.print(f"salient: {salient[0]} of {len(reports)} layers by the metric, {salient[1]} by the error")
