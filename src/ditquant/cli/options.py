"""Options that several commands share."""

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from ditquant.errors import DitQuantError
from ditquant.registry import unknown
from ditquant.sources import DTYPES

Model = Annotated[str, typer.Argument(help="A shipped model's name, a local folder, or a name on the hub.")]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="A text file with one prompt a line.")]
Seed = Annotated[int, typer.Option(help="Seed of the first prompt; prompt i takes seed + i.")]
Steps = Annotated[int | None, typer.Option(help="Denoising steps; the pipeline's own number by default.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; the pipeline's own by default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at the output path.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto: bfloat16 on a GPU, else float32.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")]


def pick_device(device: str) -> str:
    """Return the device to compute on."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:
        lines = str(error).splitlines()
        raise DitQuantError(f"device {device!r} cannot be used: {lines[0]} Choose cpu or auto.") from None
    return device


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the dtype to compute in."""
    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, [*DTYPES, "auto"])
    return DTYPES[dtype]


def read_prompts(path: Path) -> list[Any]:
    """Read one prompt a line, leaving out empty lines.

    Raises:
        DitQuantError: no such file, not text, or no prompt in it.
    """
    try:
        prompts = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DitQuantError(f"cannot read the prompts {str(path)!r}: {getattr(error, 'strerror', error)}.") from None
    if not prompts:
        raise DitQuantError(f"{str(path)!r} holds no prompt. Write one a line.")
    return prompts
