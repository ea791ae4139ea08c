"""Fill the README from measured results: nothing in its tables is typed by hand.

    python benchmarks/readme.py                    # tables from benchmarks/results/*.json
    python benchmarks/readme.py --demo out/demo    # first takes over what `make demo` measured, and its pictures

A table stands between `<!-- NAME -->` and `<!-- /NAME -->`, and is made of benchmarks/results/NAME.json.
"""

import argparse
import json
import os
import platform
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PICTURES, PICTURE_SIDE, LABEL_WIDTH, GAP = 8, 96, 116, 4
COLUMNS = {
    "model": "{}",
    "bits a weight, all-in": "{:.2f}",
    "MB": "{:.1f}",
    "step SQNR dB": "{:.1f}",
    "final-latent SQNR dB": "{:.1f}",
    "PSNR dB": "{:.1f}",
    "SSIM": "{:.3f}",
    "caption accuracy": "{:.1%}",
    "seconds": "{:.0f}",
}


def take_demo(folder: Path) -> None:
    """Write results/demo.json and docs/images/demo.png from the folder of a demo."""
    from ditquant.evaluation import Results
    from ditquant.evaluation.comparison_folder import folder_names

    results = Results.load(folder / "results.json")
    rows = []
    for model in results.models:
        found = model.summary()
        rows.append(
            {
                "model": model.name,
                "bits a weight, all-in": model.facts.bits_per_weight,
                "MB": (model.facts.file_bytes or 0) / 1e6,
                "step SQNR dB": found["step_sqnr_db"]["mean"] if "step_sqnr_db" in found else None,
                "final-latent SQNR dB": found["latent_sqnr_db"]["median"] if "latent_sqnr_db" in found else None,
                "PSNR dB": found["psnr_db"]["median"] if "psnr_db" in found else None,
                "SSIM": found["ssim"]["median"] if "ssim" in found else None,
                "caption accuracy": found["caption_accuracy"]["mean"],
                "caption accuracy ±": (found["caption_accuracy"]["high"] - found["caption_accuracy"]["low"]) / 2,
                "seconds": model.seconds,
            }
        )
    facts = {"prompts": len(results.prompts), "sampling": results.sampling, "machine": machine()}
    save("demo", facts | {"versions": results.versions, "rows": rows})
    names = [model.name for model in results.models]
    folders = [folder / "pictures" / name for name in folder_names(names)]
    picture(dict(zip(names, folders, strict=True))).save(ROOT / "docs" / "images" / "demo.png", optimize=True)


def machine() -> str:
    """Say what the seconds were measured on."""
    import torch

    able = torch.cpu.get_capabilities()
    integer = "AVX512-VNNI" if able.get("avx512_vnni") else "no AVX512-VNNI"
    return f"{os.cpu_count()} CPU cores, {platform.machine()}, {integer}"


def save(name: str, data: dict[str, Any]) -> None:
    """Write a file of results as strict JSON; undefined and infinite numbers become null."""
    finite = json.loads(json.dumps(data), parse_constant=lambda _: None)
    (RESULTS / f"{name}.json").write_text(json.dumps(finite, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def picture(folders: dict[str, Path]) -> Image.Image:
    """Put the first pictures of every model in one row each."""
    side = PICTURE_SIDE + GAP
    sheet = Image.new("RGB", (LABEL_WIDTH + PICTURES * side, len(folders) * side), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (name, folder) in enumerate(folders.items()):
        draw.text((4, row * side + PICTURE_SIDE // 2 - 5), "full precision" if row == 0 else name, fill="black")
        for column, file in enumerate(sorted(folder.glob("*.png"))[:PICTURES]):
            tile = Image.open(file).convert("RGB").resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
            sheet.paste(tile, (LABEL_WIDTH + column * side, row * side))
    return sheet


def table(rows: list[dict[str, Any]], columns: dict[str, str]) -> str:
    """Return rows as a Markdown table; the first column names, a missing value is a dash."""
    first, *others = columns
    lines = [f"| {' | '.join(columns)} |", "|---|" + "---|" * len(others)]
    for row in rows:
        cells = [cell(row, key, columns[key]) for key in others]
        name = row[first] if row is rows[0] else f"`{row[first]}`"
        lines.append(f"| {' | '.join([name, *cells])} |")
    return "\n".join(lines)


def speed() -> str:
    """Return what the README says about speed on a CPU."""
    data = json.loads((RESULTS / "speed.json").read_text(encoding="utf-8"))
    rows = [
        {"model": name, "times bfloat16": row["ratio"], "bytes": row["bytes_ratio"]}
        | {"bytes of the blocks": row["blocks_ratio"], "ms": row["ms"], "output SQNR dB": row["sqnr_db"]}
        for name, row in data["model"].items()
    ]
    columns = {"model": "{}", "ms": "{:.0f}", "times bfloat16": "{:.2f}", "bytes": "{:.2f}"}
    columns |= {"bytes of the blocks": "{:.2f}"}
    return (
        "Four PixArt-XL blocks of random weights, 1,024 tokens, batch 2, "
        f"on {data['threads']} threads of an {data['cpu'].split(',')[0]}, in turns with other packages:\n\n"
        + table(rows, columns | {"output SQNR dB": "{:.1f}"})
    )


def cell(row: dict[str, Any], key: str, form: str) -> str:
    """Return a value as it is shown, with half of its 95 % interval where the row has one under `key ±`."""
    if row.get(key) is None:
        return "–"
    margin = row.get(f"{key} ±")
    return form.format(row[key]) + ("" if margin is None else f" ± {form.format(margin)}")


def demo() -> str:
    """Return what the README says about the demo."""
    data = json.loads((RESULTS / "demo.json").read_text(encoding="utf-8"))
    steps, guidance = (data["sampling"].get(key) for key in ("steps", "guidance"))
    settings = f"{steps} steps" + (f", guidance {guidance}" if guidance is not None else "")
    return f"As `make demo` measured it on {data['prompts']} prompts ({settings}; {data['machine']}):\n\n" + table(
        data["rows"], COLUMNS
    )


def fill(text: str, name: str, content: str) -> str:
    """Put the content between the marks of a name.

    Raises:
        ValueError: the text has no such marks.
    """
    pattern = re.compile(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"no place for {name!r}: write <!-- {name} --> and <!-- /{name} --> on lines of their own.")
    return pattern.sub(lambda match: match[1] + content + match[2], text)


def filled(text: str) -> str:
    """Return the README with all its tables as they were measured."""
    return fill(fill(text, "demo", demo()), "speed", speed())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--demo", type=Path, help="folder that `ditquant demo` wrote")
    args = parser.parse_args()
    if args.demo is not None:
        take_demo(args.demo)
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
