"""`ditquant generate`: pictures from a full-precision or quantized pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ditquant.atomic import atomic_file, atomic_folder
from ditquant.cli.options import (
    BatchSize,
    Device,
    Dtype,
    Frames,
    Guidance,
    Model,
    Overwrite,
    Pixels,
    PromptFile,
    Seed,
    Steps,
    check_output,
    pick_device,
    pick_dtype,
    read_prompts,
)
from ditquant.errors import DitQuantError
from ditquant.registry import unknown

if TYPE_CHECKING:
    import numpy as np

FORMATS = (".png", ".gif", ".webp", ".jpg", ".jpeg")
VIDEO_FORMATS = (".gif", ".png", ".webp")


def generate(
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="A .png file (.gif for video), or a folder.")],
    prompt: Annotated[str | None, typer.Option(help="One prompt.")] = None,
    prompts: PromptFile = None,
    seed: Seed = 0,
    steps: Steps = None,
    guidance: Guidance = None,
    height: Pixels = None,
    width: Pixels = None,
    frames: Frames = None,
    batch_size: BatchSize = 4,
    dtype: Dtype = "auto",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Generate with MODEL: --prompt for one picture, --prompts for a folder of them."""
    if (prompt is None) == (prompts is None):
        raise DitQuantError("give either --prompt (one text) or --prompts (a file).")
    texts = [prompt] if prompt is not None else read_prompts(prompts or Path())
    if prompt is not None and (not output.suffix or output.is_dir()):
        output = output / "0000.png"
    if prompt is not None and output.suffix.lower() not in FORMATS:
        raise unknown("picture format", output.suffix, FORMATS)
    device = pick_device(device)
    compute = pick_dtype(dtype, device)

    from ditquant import distributed, sources
    from ditquant.evaluation.shared import generate_shared
    from ditquant.pipelines import accepted

    source = sources.find(model)
    check_output(output, overwrite, source.folder, prompts)
    pipeline = sources.load_pipeline(model, compute, device)
    makes_video = not {"num_frames", "video_length"}.isdisjoint(accepted(pipeline))
    if prompt is not None and makes_video and output.suffix.lower() not in VIDEO_FORMATS:
        raise unknown("video format", output.suffix, VIDEO_FORMATS)
    made = generate_shared(
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
    if not distributed.is_main():
        return
    if prompt is not None:
        with atomic_file(output, overwrite) as path:
            write_picture(made.images[0], path)
    else:
        with atomic_folder(output, overwrite) as folder:
            for i, picture in enumerate(made.images):
                write_picture(picture, folder / f"{i:04}{'.png' if picture.ndim == 3 else '.gif'}")
    count = "1 picture" if len(texts) == 1 else f"{len(texts)} pictures"
    print(f"{count} in {made.seconds:.1f} s, saved to {output}")


def write_picture(picture: np.ndarray, path: Path) -> None:
    """Write [H, W, 3] as one picture, or [F, H, W, 3] as an animation, in the format of the file's suffix."""
    from PIL import Image

    frames: list[Any] = [Image.fromarray(f) for f in (picture[None] if picture.ndim == 3 else picture)]
    if len(frames) == 1:
        frames[0].save(path)
    else:
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=80, loop=0)
