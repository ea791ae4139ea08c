"""The one error a user can mend: its message says what is wrong, what is allowed and what to do."""

from collections.abc import Iterator
from contextlib import contextmanager


class DitQuantError(ValueError):
    """Bad input; the command line prints it in one line and exits with 2."""


def damaged(what: str) -> DitQuantError:
    """Make the error for a checkpoint whose content cannot be what was saved."""
    return DitQuantError(f"the checkpoint is damaged: {what}. Download it or quantize the model again.")


@contextmanager
def of_layer(name: str) -> Iterator[None]:
    """Name the layer in an error that does not."""
    try:
        yield
    except DitQuantError as error:
        if name in str(error):
            raise
        raise DitQuantError(f"{name}: {error}") from error


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
