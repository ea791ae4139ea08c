"""What `ditquant inspect --prompts` shows: how hard every layer is to quantize, on the terminal and as a page."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditquant.cli.show import console, printed

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from ditquant.evaluation.doctor import Diagnosis, Examination
    from ditquant.recipe import Recipe
    from ditquant.sources import Source


def examine_model(
    source: Source,
    recipe: Recipe | None,
    prompts: list[Any],
    settings: Mapping[str, float | None],
    dtype: torch.dtype,
    device: str,
) -> Examination:
    """Load a model, run the prompts, and return what the doctor says.

    Raises:
        DitQuantError: the model is quantized, or cannot run prompts; the recipe does not fit.
    """
    from ditquant import sources
    from ditquant.evaluation.doctor import examine

    return examine(sources.load(source, dtype, device), prompts, recipe, settings)


def show_layers(examined: Examination) -> None:
    """Print a row a layer, how often each rule chooses the dual rotation, and what is ill."""
    found = examined.layers
    formats = list(dict.fromkeys(name for one in found for name in one.formats))
    short = {name: name.replace("twin_log", "log").replace("affine", "aff") for name in formats}
    numbers = ("J", "max", "ratio", "kurt", *short.values(), "none", "hadam.", "dual")
    table = printed("layer", *numbers, "by J", "by error", right=numbers, title="layers; SQNR of their outputs in dB")
    for one in found:
        inputs = [_text(value, ".3g") for value in (one.absmax, one.channel_ratio, one.input_kurtosis)]
        errors = [*map(one.formats.get, formats), one.none_db, one.mild_db, one.salient_db]
        chosen = ["dual" if "dual" in choice else choice for choice in _choices(one)]
        table.add_row(one.name, _text(one.rms, ".2f"), *inputs, *(_text(value, ".1f") for value in errors), *chosen)
    out = console()
    out.print(table)
    measured = [one for one in found if one.by_metric]
    salient = [sum("dual" in choice for choice in choices) for choices in zip(*map(_choices, measured), strict=True)]
    if measured:
        out.print(f"dual rotation: {salient[0]} of {len(measured)} layers by J, {salient[1]} by the error")
    for trouble in examined.troubles():
        out.print(f"{trouble.name}: {trouble.what}")


def write_layers(examined: Examination, folder: Path, model: str, prompts: int, overwrite: bool) -> None:
    """Write inspect.json and report.html."""
    from ditquant.atomic import atomic_folder
    from ditquant.evaluation.doctor_page import doctor_sections
    from ditquant.evaluation.page import write_page
    from ditquant.evaluation.results import strict, versions

    facts = {"model": model, "prompts": str(prompts), "layers": str(len(examined.layers))}
    used = versions()
    troubles = [asdict(trouble) for trouble in examined.troubles()]
    data = {"versions": used, **facts, "troubles": troubles, "layers": [one.to_dict() for one in examined.layers]}
    with atomic_folder(folder, overwrite) as part:
        text = json.dumps(strict(data), indent=1, ensure_ascii=False, allow_nan=False)
        (part / "inspect.json").write_text(text + "\n", encoding="utf-8")
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in used.items())
        write_page(part / "report.html", f"Layers of {model}", doctor_sections(examined), facts)


def _choices(one: Diagnosis) -> tuple[str, str]:
    return one.by_metric, one.by_error


def _text(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)
