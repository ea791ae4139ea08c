"""Call a pipeline without its own progress bar, and with what it refuses said in one line."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

from ditquant.errors import DitQuantError, first_line


@contextlib.contextmanager
def quiet(pipeline: Any) -> Iterator[None]:
    """Switch a pipeline's own bar off; there is no public way to ask for its setting."""
    missing = object()
    before = getattr(pipeline, "_progress_bar_config", missing)
    pipeline.set_progress_bar_config(disable=True)
    try:
        yield
    finally:
        if before is missing:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = before


@contextlib.contextmanager
def clear_errors(pipeline: Any, batch_size: int = 1) -> Iterator[None]:
    """Say in one line what a pipeline does not accept, such as a height that it cannot divide."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        hint = "Choose a smaller one" if batch_size > 1 else "Offload the pipeline or choose smaller pictures"
        raise DitQuantError(f"out of memory with batch_size {batch_size}. {hint}.") from error
    except (ValueError, IndexError, RuntimeError) as error:
        if isinstance(error, DitQuantError):
            raise
        what = f"{type(error).__name__}: {first_line(error).rstrip('.')}"
        raise DitQuantError(
            f"{type(pipeline).__name__} does not take these settings ({what}). Choose other steps or another size."
        ) from error
