"""What `ditquant inspect --attention` shows: the maps of every head, on the terminal and as a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ditquant.cli.show import show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ditquant.evaluation.attention import HeadMap
    from ditquant.sources import Source


def examine_heads(
    source: Source, prompts: list[Any], settings: Mapping[str, float | None], dtype: torch.dtype, device: str
) -> list[HeadMap]:
    """Load a pipeline, run the prompts, and return the maps of its heads.

    Raises:
        DitQuantError: a class of model that has no processor for attention plans.
    """
    from ditquant import sources
    from ditquant.attention.kinds import kind_of
    from ditquant.evaluation.attention import examine_attention
    from ditquant.skeleton import skeleton

    for name, config in source.transformers().items():
        kind_of(skeleton(config, name or source.name))
    return examine_attention(sources.load(source, dtype, device), prompts, settings)


def show_heads(heads: Sequence[HeadMap]) -> None:
    """Print a row a head."""
    from ditquant.evaluation.attention_page import heads_table, order_counts

    show(heads_table(heads))
    print(order_counts(heads))


def write_heads(heads: Sequence[HeadMap], folder: Path, model: str, prompts: int, overwrite: bool) -> None:
    """Write attention.json and report.html."""
    from ditquant.atomic import atomic_folder
    from ditquant.evaluation.attention_page import attention_sections
    from ditquant.evaluation.page import write_page
    from ditquant.evaluation.results import strict, versions

    facts, used = {"model": model, "prompts": str(prompts), "heads": str(len(heads))}, versions()
    data = {"versions": used, **facts, "heads": [head.to_dict() for head in heads]}
    with atomic_folder(folder, overwrite) as part:
        text = json.dumps(strict(data), indent=1, ensure_ascii=False, allow_nan=False)
        (part / "attention.json").write_text(text + "\n", encoding="utf-8")
        facts["versions"] = ", ".join(f"{name} {version}" for name, version in used.items())
        write_page(part / "report.html", f"Attention of {model}", attention_sections(heads), facts)
