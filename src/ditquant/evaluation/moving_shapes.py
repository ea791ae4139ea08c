"""Videos of one moving shape: drawn from a caption, and read back exactly from the frames.

`video-shapes` is trained on these; `caption_accuracy` is the share of videos whose shape, colour, direction and ground
are the ones the caption asked for, and that show nothing else.
"""

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ditquant.evaluation import shapes

SIZE, FRAMES = 64, 9
RADIUS = 8
SPEED = 2  # pixels a frame
CELL = 4  # a centre's first place is a multiple of it
SHAPES = ("circle", "square", "triangle")
COLOURS = {name: shapes.COLOURS[name] for name in ("red", "green", "blue", "yellow", "white", "black")}
DIRECTIONS = {"right": (0, 1), "left": (0, -1), "up": (-1, 0), "down": (1, 0)}  # rows, columns
_NAMES = tuple(COLOURS)
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_REACH = RADIUS + 1  # how far from its centre a shape is drawn
_SAMPLES = 4  # a pixel's side


@dataclass(frozen=True)
class Clip:
    """What a video shows: words of SHAPES, COLOURS, DIRECTIONS and COLOURS."""

    shape: str
    colour: str
    direction: str
    ground: str


CLIPS = tuple(
    Clip(shape, colour, direction, ground)
    for shape, colour, direction, ground in itertools.product(SHAPES, COLOURS, DIRECTIONS, COLOURS)
    if colour != ground
)


def is_held_out(clip: Clip) -> bool:
    """One combination of words in five."""
    return hashlib.sha256(repr(clip).encode()).digest()[0] % 5 == 0


def caption(clip: Clip) -> str:
    """Put a clip in words."""
    return f"a {clip.colour} {clip.shape} moves {clip.direction} on a {clip.ground} ground"


_BY_CAPTION = {caption(clip): clip for clip in CLIPS}


def parse(text: str) -> Clip | None:
    """Read a caption back into its clip; None if it is not one of `caption`'s sentences."""
    return _BY_CAPTION.get(text.strip().lower())


def draw(clip: Clip, rng: np.random.Generator, size: int = SIZE, frames: int = FRAMES) -> np.ndarray:
    """Draw a clip as uint8 [frames, size, size, 3]; the place is drawn from `rng`, on a grid of CELL pixels."""
    steps = np.array(DIRECTIONS[clip.direction]) * SPEED * np.arange(frames)[:, None]
    lowest, highest = RADIUS - steps.min(0), size - RADIUS - steps.max(0)
    first = CELL * rng.integers(-(-lowest // CELL), highest // CELL + 1)
    cover = np.stack([_cover(clip.shape, centre, (size, size)) for centre in first + steps])[..., None]
    ground, colour = (np.array(COLOURS[name], np.float32) for name in (clip.ground, clip.colour))
    return np.round(ground * (1 - cover) + colour * cover).astype(np.uint8)


def _cover(shape: str, centre: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share of every pixel that a shape at `centre` (row, column) covers, [rows, columns]."""
    cover = np.zeros(size, np.float32)
    near = [slice(max(0, int(c) - _REACH), max(0, int(c) + _REACH + 1)) for c in centre]
    counts = [len(range(n)[part]) for n, part in zip(size, near, strict=True)]
    axes = [part.start + (np.arange(n * _SAMPLES) + 0.5) / _SAMPLES for part, n in zip(near, counts, strict=True)]
    y, x = np.meshgrid(axes[0] - centre[0], axes[1] - centre[1], indexing="ij")
    inside = shapes.inside(shape, y, x, RADIUS).reshape(counts[0], _SAMPLES, counts[1], _SAMPLES)
    cover[near[0], near[1]] = inside.mean((1, 3))
    return cover


def read(frames: np.ndarray) -> Clip | None:
    """Read the clip in a video, uint8 [F, H, W, 3]; None if any part of it cannot be explained.

    The ground is the most frequent colour, the shape's the second. Every shape is drawn where the frames have their
    second colour, and the one that fits all of them best is taken; the video drawn again must agree with the frames.
    """
    pixels = np.asarray(frames).astype(np.float32)
    nearest = ((pixels[..., None, :] - _PALETTE) ** 2).sum(-1).argmin(-1)
    ground, colour = np.argsort(-np.bincount(nearest.ravel(), minlength=len(_NAMES)), kind="stable")[:2]
    masks = _masks(pixels, nearest == ground, nearest == colour)
    if (masks.sum((1, 2)) < _SMALLEST).any():
        return None
    found = {shape: [_fit(shape, mask) for mask in masks] for shape in SHAPES}
    shape = min(found, key=lambda name: sum(np.abs(c - m).sum() for (c, _), m in zip(found[name], masks, strict=True)))
    cover = np.stack([c for c, _ in found[shape]])[..., None]
    redrawn = _PALETTE[ground] * (1 - cover) + _PALETTE[colour] * cover
    direction = _direction(np.stack([centre for _, centre in found[shape]]))
    if direction is None or (np.abs(pixels - redrawn).max(-1) > 96).sum((1, 2)).mean() > _WRONG_PIXELS:
        return None
    return Clip(shape, _NAMES[colour], direction, _NAMES[ground])


def _masks(pixels: np.ndarray, ground: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Return how much of every pixel is the shape's, [F, H, W], between the typical colours of two sets of pixels."""
    if not colour.any():
        return np.zeros(colour.shape)
    start = np.median(pixels[ground], 0)
    axis = np.median(pixels[colour], 0) - start
    if not axis.any():
        return np.zeros(colour.shape)
    masks = np.clip(((pixels - start) @ axis) / (axis @ axis), 0, 1)
    return np.where(masks < 0.2, 0, masks)  # noise on the ground would pull at the centre


def _fit(shape: str, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw a shape so that its centre of mass is that of a mask [H, W]; return its cover and centre."""
    centre = _centre_of_mass(mask) - _MASS[shape]
    return _cover(shape, centre, mask.shape), centre


def _centre_of_mass(mask: np.ndarray) -> np.ndarray:
    rows, columns = mask.sum(1), mask.sum(0)
    places = [np.arange(len(x)) + 0.5 for x in (rows, columns)]
    return np.array([(x * p).sum() / x.sum() for x, p in zip((rows, columns), places, strict=True)])


def _direction(centres: np.ndarray) -> str | None:
    """Return where a shape goes whose centres are [F, 2]; None if it stands, turns back or goes aslant."""
    way = centres[-1] - centres[0]
    name = max(DIRECTIONS, key=lambda name: float(way @ DIRECTIONS[name]))
    steps = np.diff(centres, axis=0) @ DIRECTIONS[name]
    along = float(way @ DIRECTIONS[name])
    aside = float(np.abs(way).min())
    if along < 0.5 * SPEED * len(steps) or aside > along / 3 or steps.min() < -0.5:
        return None
    return name


_MASS = {shape: _centre_of_mass(_cover(shape, np.array([16.0, 16.0]), (32, 32))) - 16 for shape in SHAPES}
_AREA = min(_cover(s, np.array([16.0, 16.0]), (32, 32)).sum() for s in SHAPES)  # of the smallest shape, pixels a frame
_SMALLEST = 0.4 * _AREA
_WRONG_PIXELS = _AREA / 3  # a frame, on average


def caption_accuracy(videos: Sequence[np.ndarray], captions: Sequence[str]) -> float:
    """Share of videos whose clip, read back, equals the caption's.

    Raises:
        ValueError: a caption is not one of `caption`'s sentences.
    """
    clips = [parse(text) for text in captions]
    unknown = [text for text, clip in zip(captions, clips, strict=True) if clip is None]
    if unknown:
        raise ValueError(
            f"caption accuracy needs captions of clips, got {unknown[0]!r}. Write them like {caption(CLIPS[0])!r}."
        )
    return float(np.mean([read(video) == clip for video, clip in zip(videos, clips, strict=True)]))


def prompts(count: int, seed: int = 0, held_out: bool = True) -> list[str]:
    """Draw `count` different captions of held-out (or training) clips; they begin again where there are no more."""
    chosen = [caption(clip) for clip in CLIPS if is_held_out(clip) == held_out]
    order = np.random.default_rng(seed).permutation(len(chosen))
    return [chosen[order[i % len(chosen)]] for i in range(count)]
