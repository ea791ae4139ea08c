"""Which feature networks are at hand, and why the others are not."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ditquant.errors import DitQuantError
from ditquant.evaluation.networks.clip import DEFAULT, Clip
from ditquant.evaluation.networks.inception import Inception
from ditquant.evaluation.networks.lpips import Lpips
from ditquant.evaluation.networks.weights import cache

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Networks:
    """Networks that were found; `notes` say in a line each what left out and why.

    `real` are pictures uint8 [H, W, 3] that FID and KID are also taken to.
    """

    lpips: Lpips | None = None
    clip: Clip | None = None
    inception: Inception | None = None
    real: Sequence[np.ndarray] = ()
    notes: Sequence[str] = field(default_factory=list)

    @staticmethod
    def find(
        lpips: Path | None = None, clip: Path | None = None, inception: Path | None = None, real: Path | None = None
    ) -> "Networks":
        """Load networks from given paths, or from the cache where no path is given; nothing is downloaded.

        Raises:
            DitQuantError: a given path holds no such network or pictures, or pictures without Inception.
        """
        notes: list[str] = []
        loaded_lpips = _cached(Lpips, "lpips.safetensors", lpips, "LPIPS", "--lpips", notes)
        loaded_inception = _cached(Inception, "inception.safetensors", inception, "FID, KID", "--inception", notes)
        loaded_clip = None
        try:
            loaded_clip = Clip.load(clip)
        except DitQuantError:
            if clip is not None:
                raise
            notes.append(f"CLIPScore left out: {DEFAULT} is not in the cache of the hub. Give a folder with --clip.")
        if real is not None and loaded_inception is None:
            raise DitQuantError("real pictures are for FID and KID, which need Inception. Give its weights too.")
        return Networks(loaded_lpips, loaded_clip, loaded_inception, () if real is None else pictures(real), notes)


def _cached(kind: type, file: str, given: Path | None, metric: str, option: str, notes: list[str]):
    if given is not None:
        return kind.load(given)
    path = cache() / file
    if path.is_file():
        return kind.load(path)
    notes.append(f"{metric} left out: there is no {file} in the cache folder 'ditquant'. Give a file with {option}.")
    return None


def pictures(folder: Path) -> list[np.ndarray]:
    """Read the pictures of a folder as uint8 [H, W, 3], in the order of their names.

    Raises:
        DitQuantError: no folder, no picture in it, or a file that is damaged.
    """
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in PICTURES) if folder.is_dir() else []
    if not files:
        raise DitQuantError(f"{str(folder)!r} is no folder with pictures ({', '.join(PICTURES)}).")
    found = []
    for file in files:
        try:
            found.append(np.asarray(Image.open(file).convert("RGB")))
        except OSError as error:
            raise DitQuantError(f"cannot read the picture {str(file)!r}: {error}") from None
    return found
