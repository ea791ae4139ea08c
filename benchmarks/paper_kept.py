"""What `paper.py` keeps, and what it was made of: work of another run is refused, and never mixed in or overwritten."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ditquant.errors import DitQuantError
from ditquant.evaluation.networks import Networks
from ditquant.recipe import Recipe

RUN = "run.json"


def kept(folder: Path, run: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what a folder was made of, None if there is nothing in it.

    Raises:
        DitQuantError: it was made of something else than `run`, or nobody knows of what.
    """
    if not folder.is_dir() or not any(folder.iterdir()):
        return None
    try:
        theirs = dict(json.loads((folder / RUN).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        raise DitQuantError(
            f"{folder} does not say in {RUN} what it was made of. Give another --output, or delete it."
        ) from None
    refuse_other(folder, theirs, run)
    return theirs


def refuse_other(folder: Path, theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> None:
    """Refuse to mix results of two runs."""
    other = [f"{key} {theirs.get(key)}, now {value}" for key, value in mine.items() if theirs.get(key) != value]
    if other:
        raise DitQuantError(
            f"{folder} holds results of another run ({'; '.join(other)}). "
            "Give the same arguments, another --output, or delete it."
        )


def made_of_set(prompts: Sequence[str], networks: Networks) -> dict[str, Any]:
    """Return what the results of a set depend on beside the run and the recipes."""
    clip = None if networks.clip is None else networks.clip.model
    modules = {"lpips": networks.lpips, "clip": clip, "inception": networks.inception}
    found = {name: None if one is None else digest_tensors(one.state_dict()) for name, one in modules.items()}
    pictures = hashlib.sha256()
    for picture in networks.real:
        pictures.update(f"{picture.shape}".encode() + picture.tobytes())
    real = pictures.hexdigest()[:16] if len(networks.real) else None
    return {"prompts": f"{len(prompts)} of {digest(list(prompts))}", **found, "real pictures": real}


def recipe_digest(name: str) -> str:
    """Return what tells a recipe from others."""
    return digest(Recipe.load(name).to_dict())


def digest(value: Any) -> str:
    """Digest JSON data."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digest_tensors(tensors: Mapping[str, torch.Tensor]) -> str:
    """Digest names, types, shapes and all values."""
    found = hashlib.sha256()
    for name, tensor in tensors.items():
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()[:16]


def digest_folder(folder: Path) -> str:
    """Digest the files of a model by their names and content; hidden ones are a downloader's notes."""
    found = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts):
            continue
        found.update(f"{name.as_posix()} {path.stat().st_size}".encode())
        with path.open("rb") as file:
            while piece := file.read(1 << 24):
                found.update(piece)
    return found.hexdigest()[:16]


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a small file of facts."""
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
