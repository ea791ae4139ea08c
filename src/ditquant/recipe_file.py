"""Read a recipe's YAML file, strictly: a key given twice, or a file that grows when it is read, is an error."""

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Any

import yaml

from ditquant.errors import DitQuantError

MAX_BYTES = 1_000_000
MAX_ENTRIES = 100_000  # with aliases written out: a few lines of them can stand for billions


class _Strict(yaml.SafeLoader):
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            problem = "" if isinstance(key, yaml.ScalarNode) else "a key must be a word"
            if not problem and key.value in seen:
                problem = f"the key {key.value!r} is given twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def read_recipe_file(path: Path, known: Iterable[str]) -> Any:
    """Return a file's data; `known` are the names to offer where there is no such file.

    Raises:
        DitQuantError: no such file, or not the YAML of a recipe.
    """
    what = f"recipe file {str(path)!r}"
    try:
        if path.is_file() and path.stat().st_size > MAX_BYTES:
            raise DitQuantError(f"{what} has more than {MAX_BYTES:,} bytes, which no recipe needs. Give a YAML file.")
        data = yaml.load(path.read_text(encoding="utf-8-sig"), _Strict)
    except FileNotFoundError:
        raise DitQuantError(f"{what} does not exist. Give a file, or one of: {', '.join(known)}.") from None
    except UnicodeDecodeError as error:
        raise DitQuantError(f"{what} cannot be read: {error}. Give a YAML file.") from None
    except OSError as error:
        raise DitQuantError(f"{what} cannot be read: {error.strerror}. Give a YAML file.") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or "a character that is not allowed"
        raise DitQuantError(f"{what}{line} is not YAML: {problem}. Mend that line.") from None
    except (RecursionError, ValueError) as error:  # lists in lists without end, dates that do not exist
        if isinstance(error, DitQuantError):
            raise
        raise DitQuantError(f"{what} is not a recipe: {type(error).__name__}. Write a name and rules.") from None
    _check_size(data, what)
    return data


def _check_size(data: Any, what: str) -> None:
    left, count = [data], 0
    while left:
        entry = left.pop()
        count += 1
        if count > MAX_ENTRIES:
            raise DitQuantError(f"{what} holds more than {MAX_ENTRIES:,} entries. Write them without aliases.")
        if isinstance(entry, dict):
            left.extend(entry.values())
        elif isinstance(entry, list):
            left.extend(entry)
