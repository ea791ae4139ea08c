"""Options that several commands share, and the checks of what they are given."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ditquant import distributed
from ditquant.atomic import check_free
from ditquant.errors import DitQuantError
from ditquant.registry import unknown

if TYPE_CHECKING:
    import torch

MAX_SEED = 2**62  # leaves room for one seed a prompt below torch's limit

Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="A shipped model's name, a local folder, or a name on the hub.")
]
PromptFile = Annotated[Path | None, typer.Option("--prompts", help="A text file with one prompt a line.")]
Seed = Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first prompt; prompt i takes seed + i.")]
Steps = Annotated[int | None, typer.Option(min=1, help="Denoising steps; the pipeline's own number by default.")]
Guidance = Annotated[float | None, typer.Option(help="Guidance scale; the pipeline's own by default.")]
Pixels = Annotated[int | None, typer.Option(min=1, help="Pixels; the pipeline's own number by default.")]
Frames = Annotated[int | None, typer.Option(min=1, help="Frames of a video.")]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts at a time.")]
Attention = Annotated[
    str | None, typer.Option(help="paro: a token order for every head, tiles left out, integers; fitted to --prompts.")
]
Density = Annotated[float | None, typer.Option(help="With --attention: fraction of the tiles of attention to keep.")]
QkBits = Annotated[int | None, typer.Option("--qk", help="With --attention: bits of the product of Q and K, 8 or 4.")]
PvBits = Annotated[int | None, typer.Option("--pv", help="With --attention: bits of the product of P and V, 8 or 4.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what stands at the output path.")]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, float16 or auto: bfloat16 on a GPU, else float32.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps or auto.")]


def pick_device(device: str) -> str:
    """Return the device to compute on."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and torch.cuda.is_available():
        device = distributed.own_device()
    try:
        torch.ones(1, device=device).item()  # a device without values cannot compute
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        line = str(error).splitlines()[0].rstrip(".")
        raise DitQuantError(f"device {device!r} cannot be used: {line}. Choose cpu or auto.") from None
    return device


def pick_dtype(dtype: str, device: str) -> torch.dtype:
    """Return the dtype to compute in."""
    import torch

    from ditquant.sources import DTYPES

    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, [*DTYPES, "auto"])
    return DTYPES[dtype]


def read_prompts(path: Path) -> list[str]:
    """Read one prompt a line, leaving out empty lines.

    Raises:
        DitQuantError: no such file, not text, or no prompt in it.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin a file with a mark that is no prompt
    except UnicodeDecodeError as error:
        raise DitQuantError(f"cannot read the prompts {str(path)!r}: {error}. Save it as UTF-8 text.") from None
    except OSError as error:
        raise DitQuantError(
            f"cannot read the prompts {str(path)!r}: {error.strerror}. Give a text file with one prompt a line."
        ) from None
    prompts = [line.strip() for line in text.splitlines() if line.strip()]
    if not prompts:
        raise DitQuantError(f"{str(path)!r} holds no prompt. Write one a line.")
    return prompts


def check_output(output: Path, overwrite: bool, *inputs: Path | None) -> None:
    """Refuse an output that exists, cannot be written, or would replace something that the command reads."""
    check_free(output, overwrite)
    target = output.resolve()
    for kept in inputs:
        if kept is None:
            continue
        source = kept.resolve()
        if target == source or (source in target.parents and target.exists()) or target in source.parents:
            raise DitQuantError(f"{output} would replace {kept}, which is read. Choose another place for the output.")
