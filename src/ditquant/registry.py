"""A registry is a dictionary with a good error."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches
from typing import TypeVar

from ditquant.errors import DitQuantError

T = TypeVar("T")


class Registry(dict[str, T]):
    """Named entries of one kind; an unknown name is answered with the close and the allowed ones."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def register(self, name: str) -> Callable[[T], T]:
        """Decorate an entry with its name."""

        def add(entry: T) -> T:
            self[name] = entry
            return entry

        return add

    def __missing__(self, name: str) -> T:
        raise unknown(self.kind, name, self)


def unknown(kind: str, name: object, allowed: Iterable[str]) -> DitQuantError:
    """Make the error for a name that is not among the allowed ones."""
    names = sorted(allowed)
    close = get_close_matches(str(name), names, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    return DitQuantError(f"unknown {kind} {name!r}. {hint}Allowed: {', '.join(names) or 'none'}.")
