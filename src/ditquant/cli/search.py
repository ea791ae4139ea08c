"""`ditquant search`: the group size of every layer, within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditquant import distributed
from ditquant.cli.finals import read_finals, show_finals
from ditquant.cli.options import (
    MAX_SEED,
    Device,
    Dtype,
    Guidance,
    Model,
    Pixels,
    PromptFile,
    pick_device,
    pick_dtype,
    read_prompts,
)
from ditquant.errors import DitQuantError

if TYPE_CHECKING:
    from ditquant.search import LayerCache, Scorer, Searched
    from ditquant.search.finalists import Final
    from ditquant.sources import Source

CLASSES = 8  # that a class-conditional model paints where no --prompts are given


def search(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the study and the plan.")],
    recipe: Annotated[str, typer.Option(help="A recipe that quantizes activations, by name or file.")] = "qdit-w4a8",
    budget: Annotated[str, typer.Option(help="g128: the cost of that size everywhere; or bit operations.")] = "g128",
    trials: Annotated[int, typer.Option(min=1, help="Candidates that the study is to have in the end.")] = 200,
    groups: Annotated[str | None, typer.Option(help="Group sizes to choose from, such as 32,64,128.")] = None,
    genes: Annotated[str, typer.Option(help="What is searched: of groups,bits,rotation,format.")] = "groups",
    latency: Annotated[
        Path | None, typer.Option(help="Table of measured ms, the cost in place of bit operations; gaps are measured.")
    ] = None,
    finalists: Annotated[int, typer.Option(min=0, help="Best candidates that many samples are painted with.")] = 0,
    samples: Annotated[int, typer.Option(min=2, help="Samples of each finalist, for the Fréchet distance.")] = 200,
    features: Annotated[
        Path | None, typer.Option(help="TorchScript network of pictures, or of videos (FVD), for finalists.")
    ] = None,
    inception: Annotated[Path | None, typer.Option(help="Inception weights, safetensors, for finalists.")] = None,
    real: Annotated[Path | None, typer.Option(help="Folder of real pictures for --inception.")] = None,
    prompts: PromptFile = None,
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the pictures and of the search.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps of the score.")] = 4,
    guidance: Guidance = None,
    height: Pixels = None,
    width: Pixels = None,
    storage: Annotated[str | None, typer.Option(help="URL of a database, for many workers on one study.")] = None,
    study: Annotated[str, typer.Option(help="Name of the study in the storage.")] = "ditquant",
    dtype: Dtype = "auto",
    device: Device = "auto",
) -> None:
    """Search the group size of every layer of MODEL, for its weight and activation together.

    Every candidate is scored by the error of its final latents against full precision, from the same seeds; the best
    ones once more, from fresh seeds, and the best of those is the plan. The study is kept in the output folder, or in
    a database: killed, the same command goes on. Then: ditquant quantize --plan.
    """
    from ditquant import sources
    from ditquant.cli.quantize import check_recipe
    from ditquant.progress import bar as progress_bar
    from ditquant.recipe import Recipe
    from ditquant.search.folder import JOURNAL, save_found
    from ditquant.search.model import Question, search_model

    rules, sizes = Recipe.load(recipe), read_groups(groups)
    texts = None if prompts is None else read_prompts(prompts)
    device = pick_device(device)
    compute = pick_dtype(dtype, device)
    source = sources.find(model)
    sources.check_pipeline(source)
    check_recipe(source, rules)
    check_place(output, source)
    last = read_finals(source, finalists, samples, features, inception, real)
    conditions: list[str] | list[int] = texts if texts is not None else default_classes(source)
    settings = {"steps": steps, "guidance": guidance, "height": height, "width": width}
    chosen = {name: value for name, value in settings.items() if value is not None}
    loaded = sources.load(source, compute, device)
    asked = tuple(word.strip() for word in genes.split(","))
    question = Question(rules, conditions, budget, sizes, asked, seed, chosen)
    measured: list[Final] = []

    def then(searched: Searched, layers: LayerCache, scorer: Scorer) -> None:
        measured.extend(() if last is None else last.measure(searched, layers, scorer))

    with progress_bar(total=trials, desc="searching", unit="candidate") as bar:

        def seen(done: int) -> None:
            bar.update(min(done, trials) - bar.n)

        found, searched = search_model(
            loaded, question, storage or output / JOURNAL, trials, study, latency, then, seen
        )
    if not distributed.is_main():
        return
    output.mkdir(parents=True, exist_ok=True)
    save_found(output, found, searched, measured)
    show_candidates(searched)
    if measured:
        show_finals(measured, searched.budget.total)
    print(f"saved to {output} (plan {found.plan.hash()}). Next: ditquant quantize {model} --plan {output} -o OUT")


def read_groups(text: str | None) -> list[int] | None:
    """Read group sizes as they are typed."""
    if text is None:
        return None
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise DitQuantError(f"group sizes {text!r} are not allowed. Write integers and commas: 32,64,128.") from None


def check_place(output: Path, source: Source) -> None:
    """Refuse a folder that cannot be written, or that holds something else than a search."""
    from ditquant.atomic import check_folder
    from ditquant.search.folder import JOURNAL, PLAN

    known = (output / JOURNAL).exists() or (output / PLAN).exists()
    check_folder(output, overwrite=known)
    if source.folder is not None and output.resolve() == source.folder.resolve():
        raise DitQuantError(f"{output} is the model. Choose another folder.")


def default_classes(source: Source) -> list[int]:
    """Return some classes of a class-conditional model.

    Raises:
        DitQuantError: the model wants prompts.
    """
    if source.class_name != "DiTPipeline":
        raise DitQuantError(f"{source.name!r} paints from texts. Give --prompts, a file with one a line.")
    return list(range(CLASSES))


def show_candidates(searched: Searched) -> None:
    """Print the Pareto front and the uniform candidates, cheapest first."""
    from ditquant.cli.show import show
    from ditquant.evaluation import Column, Table
    from ditquant.search.score import mean

    columns = [
        Column("name", "candidate"),
        Column("error", "relative error of final latents", ".5f"),
        Column("fresh", "on fresh seeds", ".5f"),
        Column("share", "cost of the budget", ".1%"),
        Column("metadata", "scales and zero points kB", ".1f"),
        Column("note", ""),
    ]
    chosen = (c for c in searched.candidates if c.label or c.fresh)
    shown = {id(c): c for c in (*searched.front, *chosen)}.values()
    front = {id(c) for c in searched.front}
    rows = []
    for candidate in sorted(shown, key=lambda c: c.cost.total):
        notes = ["Pareto front"] if id(candidate) in front else []
        notes += ["best within the budget"] if candidate is searched.best else []
        rows.append(
            {
                "name": candidate.label or "mixed sizes",
                "error": candidate.error,
                "fresh": mean(candidate.fresh) if candidate.fresh else None,
                "share": candidate.cost.total / searched.budget.total,
                "metadata": candidate.cost.metadata_bytes / 1e3,
                "note": ", ".join(notes),
            }
        )
    show(Table(columns, rows))
    print(f"{len(searched.candidates)} candidates; budget {searched.budget.text}: {searched.budget.total:.6g}")
