"""One self-contained page: sections of tables, charts, plots and sliders; nothing is loaded from elsewhere."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ditquant.atomic import atomic_file


class Block(Protocol):
    """Something that stands on a page."""

    def page_data(self) -> dict[str, Any]:
        """Return what the template `kind`.html shows."""


@dataclass(frozen=True)
class Section:
    """Blocks under a heading."""

    title: str
    blocks: Sequence[Block]
    note: str = ""


def write_page(
    path: str | Path,
    title: str,
    sections: Sequence[Section],
    facts: Mapping[str, str] | None = None,
    overwrite: bool = False,
) -> None:
    """Write the page; `facts` are the lines of its header (label -> text). All text is escaped."""
    page = render(title, sections, facts or {})
    with atomic_file(path, overwrite) as part:
        part.write_text(page, encoding="utf-8")


def render(title: str, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    """Return the page; sections without blocks are left out."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("ditquant.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    shown = [
        {"title": section.title, "note": section.note, "blocks": [block.page_data() for block in section.blocks]}
        for section in sections
        if section.blocks
    ]
    return environment.get_template("page.html").render(title=title, facts=facts, sections=shown)
