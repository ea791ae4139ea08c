"""The protocol of LRQ-DiT's tables of pictures (arXiv 2508.03485), for whoever has the weights and a GPU.

    python benchmarks/paper.py pixart-sigma --set coco=coco.txt --set mjhq=mjhq.txt --calibration eight.txt -o tables
    python benchmarks/paper.py pixart-shapes --prompts 2 --steps 2 --methods rtn lrq --bits w4a8 ...      # dry run

The paper compares on 1,024 prompts each of COCO, MJHQ and sDCI, 1024 pixels, at W3A4, W3A6, W3A8, W4A4 and W4A6, and
calibrates with 8 prompts, all steps, both guidance branches. Sets are text files, one prompt a line, of which the first
1,024 count; `--real coco=folder` gives the pictures that FID and KID are taken to. Weights of the networks are given as
to `ditquant compare`; metrics without them are left out, with a note in the results.

Quantized models and results.json of every set and width are kept under the output folder, each with what it was made
of: a killed run goes on there, more methods, sets and widths are added to it, and a run of anything else (weights,
settings, seed, calibration, prompts, networks, recipes) is refused. The full-precision model paints every set once a
width and run. Beside the paper's baselines stand `svdquant` and `lrq-plus`; PTQ4DiT is not implemented, Q-DiT has its
fixed group size where it has the width, and is marked where it has not; Open-Sora is not among the models.
"""

import argparse
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from paper_kept import RUN, digest, digest_folder, kept, made_of_set, recipe_digest, refuse_other, write_json

import ditquant
from ditquant import sources
from ditquant.atomic import atomic_file, atomic_folder
from ditquant.cli.app import fail
from ditquant.cli.facts import describe
from ditquant.cli.options import pick_device, pick_dtype, read_prompts
from ditquant.errors import DitQuantError
from ditquant.evaluation import Results, Sampling, compare, results_table
from ditquant.evaluation.networks import Networks
from ditquant.recipe import list_recipes
from ditquant.registry import unknown


@dataclass(frozen=True)
class Model:
    """A model of the tables; steps and guidance that are None are the pipeline's own."""

    source: str
    steps: int | None
    guidance: float | None
    pixels: int | None = 1024


MODELS = {
    "pixart-alpha": Model("PixArt-alpha/PixArt-XL-2-1024-MS", 20, 4.5),
    "pixart-sigma": Model("PixArt-alpha/PixArt-Sigma-XL-2-1024-MS", 20, 4.5),
    "flux-dev": Model("black-forest-labs/FLUX.1-dev", None, None),
    "flux-schnell": Model("black-forest-labs/FLUX.1-schnell", 4, 0.0),
    "pixart-shapes": Model("pixart-shapes", 20, 4.5, None),  # shipped: for a dry run
}
BITS = ("w3a4", "w3a6", "w3a8", "w4a4", "w4a6")
METHODS = ("smoothquant", "qdit", "quarot", "duquant", "vidit-q", "lrq", "svdquant", "lrq-plus")
PROMPTS = 1024
CALIBRATION = 8
RESULTS = "results.json"


@dataclass(frozen=True)
class Protocol:
    """What all sets and widths share."""

    model: Model
    folder: Path
    calibration: list[str]
    sampling: Sampling
    seed: int
    dtype: torch.dtype
    device: str

    def load(self, source: str) -> object:
        """Load a pipeline."""
        return sources.load_pipeline(source, self.dtype, self.device)

    def run(self) -> dict[str, Any]:
        """Return what all that is kept in the folder depends on."""
        sampling, folder = self.sampling, sources.find(self.model.source).local()
        return {
            "ditquant": version("ditquant"),
            "weights": digest_folder(folder),
            **{key: getattr(sampling, key) for key in ("steps", "guidance", "height", "width")},
            "seed": self.seed,
            "calibration": digest(self.calibration),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": self.device.partition(":")[0],
        }

    def open(self) -> None:
        """Make the folder, or refuse one that holds another run."""
        if kept(self.folder, self.run()) is None:
            with atomic_folder(self.folder) as part:
                write_json(part / RUN, self.run())

    def place(self, name: str, bits: str) -> Path:
        """Return the folder of the results of a set at some bits."""
        return self.folder / f"{name}-{bits}"

    def check(self, name: str, bits: str, methods: Sequence[str], made_of: Mapping[str, Any]) -> list[str]:
        """Return the recipes that results hold already; refuse what is kept of other prompts, networks or recipes."""
        recipes = {f"{method}-{bits}": recipe_digest(f"{method}-{bits}") for method in methods}
        for recipe, made in recipes.items():
            kept(self.folder / "models" / recipe, {"recipe": made})
        theirs = (kept(self.place(name, bits), made_of) or {}).get("recipes", {})
        refuse_other(self.place(name, bits), theirs, {r: made for r, made in recipes.items() if r in theirs})
        return list(theirs)

    def quantized(self, recipe: str) -> Path:
        """Return the folder of a quantized model, made if it is not there."""
        folder, made_of = self.folder / "models" / recipe, {"recipe": recipe_digest(recipe)}
        if kept(folder, made_of) is None:
            pipeline = self.load(self.model.source)
            settings = {"steps": self.sampling.steps, "guidance": self.sampling.guidance}
            settings |= {"height": self.sampling.height, "width": self.sampling.width}
            work = self.folder / "work" / recipe
            work.parent.mkdir(parents=True, exist_ok=True)
            ditquant.quantize(
                pipeline, recipe, prompts=self.calibration, seed=self.seed, work_dir=work, settings=settings
            )
            with atomic_folder(folder) as part:
                pipeline.save_pretrained(part)
                write_json(part / RUN, made_of)
        return folder

    def compared(self, name: str, prompts: list[str], bits: str, methods: Sequence[str], networks: Networks) -> Results:
        """Return the results of one set at one width; methods that are not there are measured and added."""
        place, made_of = self.place(name, bits), made_of_set(prompts, networks)
        there = self.check(name, bits, methods, made_of)
        recipes = [f"{method}-{bits}" for method in methods]
        parts = [Results.load(place / RESULTS)] if there else []
        missing = [recipe for recipe in recipes if recipe not in there]
        if missing:
            parts.append(self.measured(missing, prompts, networks))
        results = parts[0].joined(parts[1:])
        if missing:
            measured = [model.name for model in results.models[1:]]
            with atomic_folder(place, overwrite=True) as part:
                results.save(part / RESULTS)
                write_json(part / RUN, made_of | {"recipes": {recipe: recipe_digest(recipe) for recipe in measured}})
        models = {model.name: model for model in results.models}
        return replace(results, models=[results.models[0], *(models[recipe] for recipe in recipes)])

    def measured(self, recipes: Sequence[str], prompts: list[str], networks: Networks) -> Results:
        """Quantize what is not quantized yet, and compare."""
        places = {recipe: str(self.quantized(recipe)) for recipe in recipes}
        everywhere = {"reference": self.model.source} | places
        return compare(
            partial(self.load, self.model.source),
            {recipe: partial(self.load, place) for recipe, place in places.items()},
            prompts,
            self.seed,
            sampling=self.sampling,
            describe=lambda name, pipeline: describe(everywhere[name], pipeline),
            networks=networks,
        )


def check_names(methods: Sequence[str], widths: Sequence[str]) -> None:
    """Refuse methods and bits that no recipe has."""
    pairs = [name.rpartition("-") for name in list_recipes() if re.fullmatch(r".+-w\d+a\d+", name)]
    for kind, given, known in (("method", methods, {m for m, _, _ in pairs}), ("bits", widths, {b for *_, b in pairs})):
        for name in given:
            if name not in known:
                raise unknown(kind, name, known)


def at(bits: str, methods: Sequence[str]) -> list[str]:
    """Return the methods that have a recipe at some bits, and say which have none."""
    found = [method for method in methods if f"{method}-{bits}" in list_recipes()]
    if not found:
        raise DitQuantError(f"none of {', '.join(methods)} has a recipe {bits}. Choose other methods or bits.")
    for method in methods:
        if method not in found:
            print(f"{method} has no recipe {bits}: it is marked in the table.", file=sys.stderr)
    return found


def pairs(given: Sequence[str], option: str) -> dict[str, Path]:
    """Read NAME=PATH words."""
    found = {}
    for word in given:
        name, equals, path = word.partition("=")
        if not (name.isidentifier() and equals and Path(path).exists()):
            raise DitQuantError(f"{option} {word!r} is not NAME=PATH of what exists. Give such as coco=prompts.txt.")
        if name in found:
            raise DitQuantError(f"{option} {name!r} is given twice. Give every set a name of its own.")
        found[name] = Path(path)
    return found


def first(path: Path, count: int) -> list[str]:
    """Read the first prompts of a set."""
    prompts = read_prompts(path)
    if len(prompts) < count:
        raise DitQuantError(
            f"{path} holds {len(prompts)} prompts, {count} are asked for. Give more, or --prompts less."
        )
    return prompts[:count]


def page(results: dict[tuple[str, str], Results], methods: Sequence[str]) -> str:
    """Show the tables of all sets and widths, with a mark for methods that have no recipe there."""
    parts = []
    for (name, bits), result in results.items():
        table = results_table(result)
        head = [column.label for column in table.columns]
        names = {model.name for model in result.models}
        absent = [f"{method}-{bits}" for method in methods if f"{method}-{bits}" not in names]
        marks = [[name, "no such recipe", *["–"] * (len(head) - 2)] for name in absent]
        lines = [head, ["---"] * len(head), *table.cells(), *marks]
        parts.append(f"## {name}, {bits.upper()}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def positive(word: str) -> int:
    """Read a number of at least 1."""
    if int(word) < 1:
        raise ValueError
    return int(word)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=", ".join(MODELS))
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FILE", help="prompts, one a line")
    parser.add_argument("--real", action="append", default=[], metavar="NAME=FOLDER", help="pictures of a set")
    parser.add_argument("--calibration", type=Path, required=True, help="prompts, none of them in a set")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--prompts", type=positive, default=PROMPTS)
    parser.add_argument("--steps", type=positive)
    parser.add_argument("--batch-size", type=positive, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    for network in ("lpips", "clip", "inception"):
        parser.add_argument(f"--{network}", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(words)
    if options.model not in MODELS:
        raise unknown("model", options.model, MODELS)
    methods, bits_asked = list(dict.fromkeys(options.methods)), list(dict.fromkeys(options.bits))
    check_names(methods, bits_asked)
    model, device = MODELS[options.model], pick_device(options.device)
    sets = {name: first(path, options.prompts) for name, path in pairs(options.set, "--set").items()}
    real = pairs(options.real, "--real")
    for name in real:
        if name not in sets:
            raise unknown("set of --real", name, sets)
    calibration = first(options.calibration, min(CALIBRATION, options.prompts))
    if common := set(calibration) & {prompt for prompts in sets.values() for prompt in prompts}:
        raise DitQuantError(f"{min(common)!r} is in a set and calibrates. Calibrate with other prompts.")
    steps = options.steps or model.steps
    sampling = Sampling(steps, model.guidance, model.pixels, model.pixels, batch_size=options.batch_size)
    widths = {bits: at(bits, methods) for bits in bits_asked}
    dtype = pick_dtype(options.dtype, device)
    protocol = Protocol(model, options.output / options.model, calibration, sampling, options.seed, dtype, device)
    protocol.open()

    def networks(name: str) -> Networks:
        return Networks.find(options.lpips, options.clip, options.inception, real.get(name))

    for name, prompts in sets.items():  # all of them before anything is measured
        made_of = made_of_set(prompts, networks(name))
        for bits, having in widths.items():
            protocol.check(name, bits, having, made_of)
    found, tables = {}, protocol.folder / "tables.md"
    for name, prompts in sets.items():
        given = networks(name)
        for bits, having in widths.items():
            found[name, bits] = protocol.compared(name, prompts, bits, having, given)
            with atomic_file(tables, overwrite=True) as file:
                file.write_text(page(found, methods), encoding="utf-8")
    print(f"written: {tables}")


def command() -> None:
    """Run as a command: what a user can mend is one line on standard error and exit code 2."""
    try:
        main()
    except DitQuantError as error:
        fail(str(error))


if __name__ == "__main__":
    command()
