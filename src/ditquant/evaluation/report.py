"""One self-contained page: what was compared, the table, the pictures side by side, plots."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

import numpy as np

from ditquant.atomic import atomic_file
from ditquant.evaluation.pictures import PAGE_SIDE, data_uri, page_picture, png
from ditquant.evaluation.plots import Plot
from ditquant.evaluation.table import Table

PAGE_PIXELS = 16_000_000  # keeps the page under some 40 MB; the rest stays in the folder


@dataclass
class Gallery:
    """Pictures side by side: `columns[model]` holds one picture a prompt."""

    prompts: Sequence[str] = ()
    columns: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)


def write_report(
    path: str | Path,
    title: str,
    table: Table,
    gallery: Gallery | None = None,
    plots: Sequence[Plot] = (),
    facts: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the page; `facts` are the lines of its header (label -> text). All text is escaped."""
    page = render(title, table, gallery or Gallery(), plots, facts or {})
    with atomic_file(path, overwrite) as part:
        part.write_text(page, encoding="utf-8")


def render(title: str, table: Table, gallery: Gallery, plots: Sequence[Plot], facts: Mapping[str, str]) -> str:
    """Return the page."""
    from jinja2 import Environment, StrictUndefined

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = resources.files("ditquant.evaluation").joinpath("report.html").read_text(encoding="utf-8")
    shown = _shown(gallery)
    return environment.from_string(template).render(
        title=title,
        facts=facts,
        columns=table.columns,
        rows=table.cells(),
        models=list(gallery.columns),
        pictures=[_gallery_row(gallery, i) for i in range(shown)],
        shown=shown,
        count=len(gallery.prompts),
        plots=[{"title": p.title, "src": p.png and data_uri(p.png), "note": p.note} for p in plots],
    )


def _shown(gallery: Gallery) -> int:
    """Return how many prompts fit on the page, at least one."""
    if not gallery.prompts or not gallery.columns:
        return 0
    pixels = sum(min(pictures[0][..., 0].size, PAGE_SIDE**2) for pictures in gallery.columns.values())
    return min(len(gallery.prompts), max(1, PAGE_PIXELS // pixels))


def _gallery_row(gallery: Gallery, index: int) -> dict:
    cells = []
    for model, pictures in gallery.columns.items():
        picture = page_picture(pictures[index])
        height, width = picture.shape[:2]
        # small pictures are shown twice as large, pixel by pixel
        factor = 2 if max(height, width) <= 128 else 1
        size = {"width": width * factor, "height": height * factor, "small": factor == 2}
        cells.append({"model": model, "src": data_uri(png(picture)), **size})
    return {"prompt": gallery.prompts[index], "cells": cells}
