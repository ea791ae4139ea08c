"""`ditquant generate`: pictures from a full-precision or quantized pipeline."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from PIL import Image

from ditquant import sources
from ditquant.atomic import atomic_file, atomic_folder, check_free
from ditquant.cli.options import (
    Device,
    Dtype,
    Guidance,
    Model,
    Overwrite,
    PromptFile,
    Seed,
    Steps,
    pick_device,
    pick_dtype,
    read_prompts,
)
from ditquant.errors import DitQuantError
from ditquant.evaluation.generate import generate as run


def generate(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .png file (.gif for video), or a folder.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt.")] = None,
    prompts: PromptFile = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames of a video.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts at a time.")] = 4,
    dtype: Dtype = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Generate with MODEL: --prompt for one picture, --prompts for a folder of them."""
    if (prompt is None) == (prompts is None):
        raise DitQuantError("give either --prompt or --prompts.")
    texts: list[Any] = [prompt] if prompts is None else read_prompts(prompts)
    if prompts is None and not output.suffix:
        output = output / "0000.png"
    check_free(output, overwrite)
    device = pick_device(device)
    pipeline = sources.load_pipeline(model, pick_dtype(dtype, device), device)
    made = run(
        pipeline,
        texts,
        seeds=seed,
        steps=steps,
        guidance=guidance,
        height=height,
        width=width,
        frames=frames,
        batch_size=batch_size,
    )
    if prompts is None:
        with atomic_file(output, overwrite) as path:
            write_picture(made.images[0], path)
    else:
        with atomic_folder(output, overwrite) as folder:
            for i, picture in enumerate(made.images):
                write_picture(picture, folder / f"{i:04}{'.png' if picture.ndim == 3 else '.gif'}")
    print(f"{len(texts)} in {made.seconds:.1f} s, saved to {output}")


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Write [H, W, 3] as one picture, or [F, H, W, 3] as an animation, in the format of the file's suffix."""
    frames = [Image.fromarray(f) for f in (picture[None] if picture.ndim == 3 else picture)]
    try:
        if len(frames) == 1:
            frames[0].save(path)
        else:
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)
    except ValueError as error:
        raise DitQuantError(f"cannot write {path.name!r}: {error}. Use .png, or .gif for video.") from None
