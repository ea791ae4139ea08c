"""A folder that holds what a run has finished, so that the next one goes on there and ends with the same bits."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditquant.atomic import atomic_folder, check_folder, clear_errors
from ditquant.calibration.arguments import NotPlain
from ditquant.calibration.kept import (
    Damaged,
    load_carried,
    load_layers,
    load_recording,
    save_carried,
    save_layers,
    save_recording,
)
from ditquant.calibration.record import Recording
from ditquant.calibration.walk import Walk
from ditquant.errors import DitQuantError
from ditquant.nn import QuantLinear
from ditquant.on_disk import values
from ditquant.progress import say

_RUN = "run.json"
_SAMPLED = 256  # values of every weight that are looked at


class WorkFolder:
    """Finished units (blocks, or single layers) under the fingerprint of the run that made them."""

    def __init__(self, path: str | os.PathLike, run: Mapping[str, Any]):
        """Open or make it; `run` is what tells a run from others, by words that a user knows.

        Raises:
            DitQuantError: it holds another run or something else, or cannot be written.
        """
        self.path = Path(path)
        mine = {key: _digest(value) for key, value in run.items()}
        check_work(self.path)
        if not (self.path / _RUN).exists():
            with atomic_folder(self.path) as part:
                (part / _RUN).write_text(json.dumps(mine, indent=1))
            return
        try:
            theirs = dict(json.loads((self.path / _RUN).read_text()))
        except (OSError, ValueError, TypeError) as error:
            raise DitQuantError(f"the work folder {path} cannot be read: {error}. Choose another folder.") from None
        other = [key for key in mine if theirs.get(key) != mine[key]]
        if other:
            raise DitQuantError(
                f"{path} holds the work of another run (other {', '.join(other)}). "
                "Give the same arguments, choose another folder, or delete this one."
            )

    def done(self, unit: str) -> bool:
        """Say whether a unit is finished."""
        return (self.path / unit).is_dir()

    def whole(self, unit: str, linears: Mapping[str, nn.Linear]) -> bool:
        """Say whether a unit is finished and can be read; one in pieces is told."""
        if not self.done(unit):
            return False
        with self._told(unit):
            self.load(unit, linears)
            return True
        return False

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        """Say that a file in pieces is done without."""
        try:
            yield
        except Damaged as error:
            say(f"{self.path / what} is damaged and computed again: {error}")

    def load(self, unit: str, linears: Mapping[str, nn.Linear]) -> dict[str, QuantLinear]:
        """Return the quantized layers of a finished unit, by their names; see `whole`."""
        return load_layers(self.path / unit, linears)

    def save(
        self, unit: str, layers: Mapping[str, QuantLinear], walk: Walk | None = None, before: str | None = None
    ) -> None:
        """Write a unit and what the walk carries on from it; what it carried from the unit `before` goes."""
        with atomic_folder(self.path / unit, overwrite=True) as part:
            save_layers(part, layers)
            if walk is not None:
                save_carried(part, walk)
        if before is not None:
            shutil.rmtree(self.path / before / "carried", ignore_errors=True)

    def forget(self) -> None:
        """Delete all that is finished."""
        for place in self.path.iterdir():
            if place.is_dir():
                shutil.rmtree(place)

    def restore(self, unit: str, walk: Walk) -> bool:
        """Give a walk what it carried on from a finished unit; False if that cannot be read."""
        with self._told(f"{unit}/carried"):
            load_carried(self.path / unit, walk)
            return True
        return False

    def save_recording(self, name: str, recording: Recording) -> None:
        """Keep the recorded calls; those with arguments that files cannot hold are recorded again."""
        with clear_errors(self.path), suppress(NotPlain):
            save_recording(self.path / name, recording)

    def load_recording(self, name: str, recording: Recording) -> bool:
        """Fill a recording with the calls that were kept; False if there are none, or they cannot be read."""
        with self._told(name):
            return load_recording(self.path / name, recording)
        return False


def check_work(path: Path) -> None:
    """Refuse a folder that holds something else than work, or that cannot be written."""
    if (path / _RUN).is_file():
        return
    if path.is_dir() and any(path.iterdir()):
        raise DitQuantError(f"{path} holds something else than the work of a run. Choose another folder.")
    check_folder(path)


def clear_work(path: Path) -> None:
    """Delete a work folder; anything else stays."""
    if (path / _RUN).is_file():
        shutil.rmtree(path, ignore_errors=True)


def describe_models(model: Any, parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return what tells one model or pipeline from another."""
    return {
        "version of ditquant": version("ditquant"),
        "model": [(name, type(part).__name__, _config(part)) for name, part in parts.items()],
        "weights": [_sample_weights(part) for part in parts.values()],
        "scheduler": _config(getattr(model, "scheduler", None)),
    }


def _config(component: Any) -> dict[str, Any]:
    """Return a configuration without the notes of diffusers, whose order changes from process to process."""
    return {key: value for key, value in dict(getattr(component, "config", {})).items() if not key.startswith("_")}


def _sample_weights(model: nn.Module) -> str:
    """Digest names, shapes and some values of all weights: telling two models apart need not read them whole."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in values(model):
        flat = tensor.detach().reshape(-1)
        some = flat[:: max(1, flat.numel() // _SAMPLED)].cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} {tensor.device.type}".encode())
        digest.update(some.view(torch.uint8).numpy())
    return digest.hexdigest()


def _digest(value: Any) -> str:
    plain = json.dumps(value, sort_keys=True, default=str)
    return hashlib.blake2b(plain.encode(), digest_size=16).hexdigest()
