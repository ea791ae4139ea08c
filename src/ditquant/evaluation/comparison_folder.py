"""A comparison on disk: results.json, report.html and the pictures."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ditquant.atomic import atomic_folder
from ditquant.evaluation.page import write_page
from ditquant.evaluation.pictures import png
from ditquant.evaluation.plots import Plot
from ditquant.evaluation.report import report_sections
from ditquant.evaluation.results import Results


def write_comparison(
    results: Results,
    folder: str | Path,
    *,
    title: str = "Comparison with full precision",
    plots: Sequence[Plot] = (),
    facts: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write results.json, report.html and pictures/<model>/<index>.png (a video: <index>/<frame>.png).

    Raises:
        DitQuantError: the folder exists and must stay, or cannot be written.
    """
    pictures = {model.name: model.images for model in results.models if model.images}
    with atomic_folder(folder, overwrite) as part:
        results.save(part / "results.json")
        sections = report_sections(results, plots)
        write_page(part / "report.html", title, sections, header(results) | dict(facts or {}))
        for name, images in zip(folder_names(list(pictures)), pictures.values(), strict=True):
            _write_pictures(part / "pictures" / name, images)


def header(results: Results) -> dict[str, str]:
    """Return what a reader must know to repeat the comparison, label -> text."""
    reference, *others = results.models
    ran = results.sampling | {"dtype": results.conditions.dtype, "device": results.conditions.device}
    sampling = [f"{key} {value}" for key, value in ran.items() if value is not None]
    return {
        "reference": reference.name,
        "compared": ", ".join(model.name for model in others) or "nothing",
        "prompts": f"{len(results.prompts)}, seeds {_range(results.seeds)}",
        "sampling": ", ".join(sampling),
        **({"notes": " · ".join(results.notes)} if results.notes else {}),
        **({"verdict": "; ".join(results.verdict)} if results.verdict else {}),
        "versions": ", ".join(f"{name} {version}" for name, version in results.versions.items()),
    }


def folder_names(models: Sequence[str]) -> list[str]:
    """Return a different, harmless folder name for every model, hub names with slashes included."""
    names: list[str] = []
    for model in models:
        # a name of dots alone would lead out of the folder
        plain = re.sub(r"[^\w.-]+", "-", model).strip(".-") or "model"
        name, count = plain, 1
        while name.lower() in {n.lower() for n in names}:
            count += 1
            name = f"{plain}-{count}"
        names.append(name)
    return names


def _range(seeds: Sequence[int]) -> str:
    first, last = seeds[0], seeds[-1]
    consecutive = all(seed == first + i for i, seed in enumerate(seeds))
    return f"{first} to {last}" if consecutive and first != last else ", ".join(map(str, seeds))


def _write_pictures(folder: Path, images: Sequence[np.ndarray]) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        if image.ndim == 3:
            (folder / f"{i:04d}.png").write_bytes(png(image))
            continue
        (folder / f"{i:04d}").mkdir()
        for j, frame in enumerate(image):
            (folder / f"{i:04d}" / f"{j:04d}.png").write_bytes(png(frame))
