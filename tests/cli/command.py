"""Run the `ditquant` command inside the test process, and look at what it said and left."""

import contextlib
import io
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import yaml

from ditquant.cli import main


@dataclass(frozen=True)
class Run:
    """Exit code and output of one command."""

    code: int
    out: str
    err: str


def ditquant(*arguments: object) -> Run:
    """Run a command; everything but SystemExit passes through."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    words = ["ditquant", *map(str, arguments)]
    with mock.patch.object(sys, "argv", words), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as error:
            code = error.code or 0
    return Run(code, out.getvalue(), err.getvalue())


def succeed(*arguments: object) -> str:
    """Run a command that must succeed, and return what it printed."""
    run = ditquant(*arguments)
    assert run.code == 0, run.err
    return run.out


def refused(run: Run, *parts: str) -> None:
    """Check that a command failed with one line that holds all the parts, behind at most the forecast of its work."""
    assert run.code == 2, run
    said = "".join(line for line in run.err.splitlines(keepends=True) if not line.endswith(" min to fit\n"))
    assert said.endswith("\n") and said.count("\n") == 1 and "\r" not in said, run.err
    assert said.startswith("error: ") and "Traceback" not in said
    for part in parts:
        assert part in said, f"{part!r} is not in {said!r}"


def contents(folder: Path) -> dict[str, bytes]:
    """Return everything below a folder, hidden files included."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else b"" for p in folder.rglob("*")}


def saved(folder: Path) -> dict[str, object]:
    """Return `contents` but for the order of safetensors' header entries, which is drawn at random."""
    return {name: split(data) if name.endswith(".safetensors") else data for name, data in contents(folder).items()}


def split(file: bytes) -> tuple[object, bytes]:
    """Return the header of a safetensors file, and its data."""
    end = 8 + int.from_bytes(file[:8], "little")
    return json.loads(file[8:end]), file[end:]


def write_recipe(path: Path, **rule: object) -> Path:
    """Write a recipe with one rule for all layers, changed by the arguments."""
    rules = [{"target": "role:*", "weight": {"bits": 4}} | rule]
    path.write_text(yaml.safe_dump({"name": "mine", "rules": rules}))
    return path


def refuse(place, model, quantized, command: str, *parts: str) -> None:
    """Run a command that is refused, and check that it changed nothing anywhere."""
    words = [w.replace("MODEL", str(model)).replace("QUANTIZED", str(quantized)) for w in command.split()]
    folders = (place, model.parent, quantized.parent)
    before = [contents(folder) for folder in folders]
    refused(ditquant(*words), *parts)
    assert [contents(folder) for folder in folders] == before
