"""The protocol of LRQ-DiT's tables of pictures (arXiv 2508.03485), for whoever has the weights and a GPU.

    python benchmarks/paper.py pixart-sigma --set coco=coco.txt --set mjhq=mjhq.txt --calibration eight.txt -o tables
    python benchmarks/paper.py pixart-shapes --prompts 2 --steps 2 --methods rtn lrq --bits w4a8 ...      # dry run

The paper compares on 1,024 prompts each of COCO, MJHQ and sDCI, 1024 pixels, at W3A4, W3A6, W3A8, W4A4 and W4A6, and
calibrates with 8 prompts, all steps, both guidance branches. Sets are text files, one prompt a line, of which the first
1,024 count; `--real coco=folder` gives the pictures that FID and KID are taken to. Weights of the networks are given as
to `ditquant compare`; metrics without them are left out, with a note in the results.

Quantized models and results.json of every set and width are kept under the output folder: a killed run goes on there.
The full-precision model paints every set once a width. Beside the paper's baselines stand `svdquant` and `lrq-plus`;
PTQ4DiT is not implemented, Q-DiT has its fixed group size where it has the width, Open-Sora is not among the models.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

import ditquant
from ditquant import sources
from ditquant.atomic import atomic_file, atomic_folder
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

    def quantized(self, recipe: str) -> Path:
        """Return the folder of a quantized model, made if it is not there."""
        folder = self.folder / "models" / recipe
        if not folder.exists():
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
        return folder

    def compared(self, name: str, prompts: list[str], bits: str, methods: Sequence[str], networks: Networks) -> Results:
        """Return the results of one set at one width, measured if they are not there."""
        path = self.folder / f"{name}-{bits}.json"
        if not path.exists():
            places = {f"{method}-{bits}": str(self.quantized(f"{method}-{bits}")) for method in methods}
            everywhere = {"reference": self.model.source} | places
            results = compare(
                partial(self.load, self.model.source),
                {recipe: partial(self.load, place) for recipe, place in places.items()},
                prompts,
                self.seed,
                sampling=self.sampling,
                describe=lambda name, pipeline: describe(everywhere[name], pipeline),
                networks=networks,
            )
            results.save(path)
        return Results.load(path)


def at(bits: str, methods: Sequence[str]) -> list[str]:
    """Return the methods that have a recipe at some bits."""
    found = [method for method in methods if f"{method}-{bits}" in list_recipes()]
    if not found:
        raise DitQuantError(f"none of {', '.join(methods)} has a recipe {bits}. Choose other methods or bits.")
    return found


def pairs(given: Sequence[str], option: str) -> dict[str, Path]:
    """Read NAME=PATH words."""
    found = {}
    for word in given:
        name, equals, path = word.partition("=")
        if not (name.isidentifier() and equals and Path(path).exists()):
            raise DitQuantError(f"{option} {word!r} is not NAME=PATH of what exists. Give such as coco=prompts.txt.")
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


def page(results: dict[tuple[str, str], Results]) -> str:
    """Show the tables of all sets and widths."""
    parts = []
    for (name, bits), result in results.items():
        table = results_table(result)
        head = [column.label for column in table.columns]
        lines = [head, ["---"] * len(head), *table.cells()]
        parts.append(f"## {name}, {bits.upper()}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n")
    return "\n".join(parts)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help=", ".join(MODELS))
    parser.add_argument("--set", action="append", required=True, metavar="NAME=FILE", help="prompts, one a line")
    parser.add_argument("--real", action="append", default=[], metavar="NAME=FOLDER", help="pictures of a set")
    parser.add_argument("--calibration", type=Path, required=True, help="prompts, none of them in a set")
    parser.add_argument("--methods", nargs="+", default=METHODS)
    parser.add_argument("--bits", nargs="+", default=BITS)
    parser.add_argument("--prompts", type=int, default=PROMPTS)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    for network in ("lpips", "clip", "inception"):
        parser.add_argument(f"--{network}", type=Path)
    parser.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(words)
    if options.model not in MODELS:
        raise unknown("model", options.model, MODELS)
    model, device = MODELS[options.model], pick_device(options.device)
    sets = {name: first(path, options.prompts) for name, path in pairs(options.set, "--set").items()}
    real = pairs(options.real, "--real")
    calibration = first(options.calibration, min(CALIBRATION, options.prompts))
    if common := set(calibration) & {prompt for prompts in sets.values() for prompt in prompts}:
        raise DitQuantError(f"{min(common)!r} is in a set and calibrates. Calibrate with other prompts.")
    steps = options.steps or model.steps
    sampling = Sampling(steps, model.guidance, model.pixels, model.pixels, batch_size=options.batch_size)
    widths = {bits: at(bits, options.methods) for bits in options.bits}
    folder = options.output / options.model
    folder.mkdir(parents=True, exist_ok=True)
    dtype = pick_dtype(options.dtype, device)
    protocol = Protocol(model, folder, calibration, sampling, options.seed, dtype, device)
    found = {}
    for name, prompts in sets.items():
        networks = Networks.find(options.lpips, options.clip, options.inception, real.get(name))
        for bits, methods in widths.items():
            found[name, bits] = protocol.compared(name, prompts, bits, methods, networks)
            with atomic_file(folder / "tables.md", overwrite=True) as file:
                file.write_text(page(found), encoding="utf-8")
    print(f"written: {folder / 'tables.md'}")


if __name__ == "__main__":
    main()
