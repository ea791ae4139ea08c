"""Before and after: for every prompt the pictures of two models under one slider, the worst first."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ditquant.evaluation.pictures import data_uri, png, shrunk
from ditquant.evaluation.table import Column, plain

PAGE_PIXELS = 16_000_000  # keeps the page under some 40 MB; the rest stays in the folder
SIDES = (192, 384)  # the longest side of a picture on the page: at least, at most; the folder holds it whole
SHOWN = 384  # the side, in CSS pixels, up to which small pictures are enlarged, pixel by pixel
CARD = 320  # a column of the page is at least so wide where pictures are
FRAMES = 8  # of a video


@dataclass
class Gallery:
    """`columns[model]` holds one picture a prompt, uint8 [H, W, 3] or [F, H, W, 3]; the first model is the reference.

    `values[model][key]` holds one figure a prompt for the columns in `figures`, which prompts can be sorted by.
    """

    prompts: Sequence[str] = ()
    columns: Mapping[str, Sequence[np.ndarray]] = field(default_factory=dict)
    figures: Sequence[Column] = ()
    values: Mapping[str, Mapping[str, Sequence[float]]] = field(default_factory=dict)

    def page_data(self) -> dict[str, Any]:
        """Return cards in order of damage; where not all fit on the page, the most damaged ones."""
        side, count = self.size()
        cards = [self._card(i, side) for i in self.by_damage()[:count]]
        return {
            "kind": "sliders",
            "models": list(self.columns),
            "right": min(1, len(self.columns) - 1),
            "figures": [{"key": f.key, "label": f.label, "better": f.better} for f in self.figures],
            "cards": cards,
            "card": min([CARD, *(card["shown"] for card in cards)]),
        }

    def size(self) -> tuple[int, int]:
        """Return the longest side of a picture, and how many prompts fit on the page, at least one."""
        pictures = [pictures[0] for pictures in self.columns.values() if len(pictures)]
        if not self.prompts or not pictures:
            return SIDES[1], 0
        frames = sum(min(p.shape[0], FRAMES) if p.ndim == 4 else 1 for p in pictures)
        fitting = math.isqrt(PAGE_PIXELS // (frames * len(self.prompts)))
        side = min(max(fitting, SIDES[0]), SIDES[1])
        height, width = pictures[0].shape[-3:-1]
        scale = min(1, side / max(height, width))
        pixels = frames * height * width * scale**2
        return side, min(len(self.prompts), max(1, int(PAGE_PIXELS / pixels)))

    def by_damage(self) -> list[int]:
        """Order the prompts by the first figure, the worst model deciding; those without a figure come last."""
        if not self.figures:
            return list(range(len(self.prompts)))
        figure = self.figures[0]
        sign = -1 if figure.better == "lower" else 1
        columns = [sign * np.asarray(v[figure.key], float) for v in self.values.values() if figure.key in v]

        def worst(index: int) -> float:
            found = [c[index] for c in columns if index < len(c) and not np.isnan(c[index])]
            return min(found, default=math.inf)

        return sorted(range(len(self.prompts)), key=worst)

    def _card(self, index: int, side: int) -> dict[str, Any]:
        models = [_frames(pictures[index], side) for pictures in self.columns.values()]
        height, width = models[0][0].shape[:2]
        factor = max(1, SHOWN // max(height, width))
        return {
            "index": index,
            "prompt": self.prompts[index],
            "models": [[data_uri(png(frame)) for frame in frames] for frames in models],
            "frames": max(map(len, models)),
            **{"width": width, "height": height, "shown": width * factor, "enlarged": factor > 1},
            "figures": {figure.key: self._texts(figure, index) for figure in self.figures},
        }

    def _texts(self, figure: Column, index: int) -> list[dict[str, str]]:
        texts = []
        for model in self.columns:
            values = self.values.get(model, {}).get(figure.key, ())
            value = values[index] if index < len(values) else None
            texts.append({"value": plain(value), "text": "" if value is None else figure.text({figure.key: value})})
        return texts


def _frames(picture: np.ndarray, side: int) -> list[np.ndarray]:
    if picture.ndim == 3:
        return [shrunk(picture, side)]
    chosen = np.linspace(0, len(picture) - 1, min(FRAMES, len(picture))).round().astype(int)
    return [shrunk(picture[i], side) for i in chosen]
