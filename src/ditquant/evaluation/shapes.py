"""Scenes of coloured shapes: drawn from a caption, and read back exactly from a picture.

`pixart-shapes` is trained on these pictures; `caption_accuracy` is the share of pictures in which every shape, colour,
size, place and the ground are the ones the caption asked for.
"""

import hashlib
from dataclasses import dataclass

import numpy as np

SIZE = 64
SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "green": (40, 160, 60),
    "blue": (40, 80, 220),
    "yellow": (244, 208, 48),
    "purple": (140, 50, 180),
    "cyan": (60, 200, 224),
    "white": (245, 245, 245),
    "black": (24, 24, 24),
}
RADIUS = {"small": 6, "large": 9}
PLACES = {
    "at the top left": (11, 11),
    "at the top": (11, 32),
    "at the top right": (11, 53),
    "on the left": (32, 11),
    "in the centre": (32, 32),
    "on the right": (32, 53),
    "at the bottom left": (53, 11),
    "at the bottom": (53, 32),
    "at the bottom right": (53, 53),
}
JITTER = 1
_HALF = 10  # half a window: the largest radius plus the jitter
_READ_JITTER = 2  # a generated shape may stand a little further off than a drawn one
_PALETTE = np.array(list(COLOURS.values()), np.float32)
_NAMES = tuple(COLOURS)


@dataclass(frozen=True, order=True)
class Item:
    """One shape of a scene: words of SHAPES, COLOURS, RADIUS and PLACES."""

    place: str
    shape: str
    colour: str
    size: str


@dataclass(frozen=True)
class Scene:
    """A ground colour and one to three items at different places, sorted by place."""

    ground: str
    items: tuple[Item, ...]

    def __post_init__(self):
        object.__setattr__(self, "items", tuple(sorted(self.items)))


def random_scene(rng: np.random.Generator, held_out: bool = False) -> Scene:
    """Draw a scene; `held_out` chooses the side of a split by hash that training never sees."""
    while True:
        ground = str(rng.choice(_NAMES))
        colours = [c for c in _NAMES if c != ground]
        places = rng.choice(list(PLACES), size=rng.integers(1, 4), replace=False)
        scene = Scene(
            ground,
            tuple(
                Item(str(p), str(rng.choice(SHAPES)), str(rng.choice(colours)), str(rng.choice(list(RADIUS))))
                for p in places
            ),
        )
        if is_held_out(scene) == held_out:
            return scene


def is_held_out(scene: Scene) -> bool:
    """One scene in ten, whatever the order in which a caption names its items."""
    return hashlib.sha256(repr(scene).encode()).digest()[0] % 10 == 0


def caption(scene: Scene, rng: np.random.Generator | None = None) -> str:
    """Put a scene in words; `rng` shuffles the order of the items."""
    items = list(scene.items)
    if rng is not None:
        rng.shuffle(items)
    words = [f"a {i.size} {i.colour} {i.shape} {i.place}" for i in items]
    listed = words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]
    return f"{listed} on a {scene.ground} ground"


def parse(text: str) -> Scene | None:
    """Read a caption back into its scene; None if it is not one of `caption`'s sentences."""
    body, _, ground = text.strip().lower().removesuffix(" ground").rpartition(" on a ")
    items = []
    for phrase in body.replace(" and a ", ", a ").split(", "):
        words = phrase.split(" ", 4)
        if len(words) != 5 or words[0] != "a":
            return None
        _, size, colour, shape, place = words
        if size not in RADIUS or colour not in COLOURS or shape not in SHAPES or place not in PLACES:
            return None
        items.append(Item(place, shape, colour, size))
    return Scene(ground, tuple(items)) if ground in COLOURS else None


def inside(shape: str, y: np.ndarray, x: np.ndarray, radius: float) -> np.ndarray:
    """Return whether points, measured from a shape's centre, lie in it."""
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "square":
        return np.maximum(abs(x), abs(y)) <= radius
    if shape == "triangle":
        return (y <= radius * 0.9) & (y >= -radius * 0.9 + 1.8 * abs(x))
    return (np.minimum(abs(x), abs(y)) <= radius / 3) & (np.maximum(abs(x), abs(y)) <= radius)


def _coverage(shape: str, radius: int) -> np.ndarray:
    """Share of every pixel of a window that the shape covers (4x4 samples a pixel)."""
    n, s = 2 * _HALF + 1 + 2 * _READ_JITTER, 4
    axis = (np.arange(n * s) + 0.5) / s - n / 2
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return inside(shape, y, x, radius).reshape(n, s, n, s).mean((1, 3)).astype(np.float32)


_COVERAGE = {(shape, size): _coverage(shape, r) for shape in SHAPES for size, r in RADIUS.items()}


def _window(shape: str, size: str, dy: int, dx: int) -> np.ndarray:
    """Coverage of a shape shifted by (dy, dx) in the 21x21 window of its place."""
    y, x = _READ_JITTER - dy, _READ_JITTER - dx
    return _COVERAGE[shape, size][y : y + 2 * _HALF + 1, x : x + 2 * _HALF + 1]


def draw(scene: Scene, rng: np.random.Generator | None = None) -> np.ndarray:
    """Draw a scene as uint8 [64, 64, 3]; `rng` moves every shape by up to one pixel."""
    picture = np.empty((SIZE, SIZE, 3), np.float32)
    picture[:] = COLOURS[scene.ground]
    for item in scene.items:
        dy, dx = (0, 0) if rng is None else rng.integers(-JITTER, JITTER + 1, size=2)
        _paste(picture, item, int(dy), int(dx))
    return np.round(picture).astype(np.uint8)


def _paste(picture: np.ndarray, item: Item, dy: int, dx: int) -> None:
    cover = _window(item.shape, item.size, dy, dx)[..., None]
    target = picture[_cell(item.place)]
    target[:] = target * (1 - cover) + np.array(COLOURS[item.colour], np.float32) * cover


def _cell(place: str) -> tuple[slice, slice]:
    y, x = PLACES[place]
    return slice(y - _HALF, y + _HALF + 1), slice(x - _HALF, x + _HALF + 1)


def read(picture: np.ndarray) -> Scene | None:
    """Read the scene in a picture, uint8 [64, 64, 3]; None if any part of it cannot be explained.

    The ground is the most frequent colour. In each of the nine places the best of all shapes, sizes and shifts is
    matched; the scene that was found is drawn again and must agree with the picture.
    """
    pixels = picture.astype(np.float32)
    distance = ((pixels[:, :, None] - _PALETTE) ** 2).sum(-1)
    nearest = distance.argmin(-1)
    ground = int(np.bincount(nearest.ravel(), minlength=len(_NAMES)).argmax())
    redrawn = np.empty_like(pixels)
    redrawn[:] = _PALETTE[ground]
    items = []
    for place in PLACES:
        found = _read_cell(pixels[_cell(place)], nearest[_cell(place)], ground, place)
        if found is not None:
            items.append(found[0])
            _paste(redrawn, *found)
    if not 1 <= len(items) <= 3:
        return None
    wrong = np.abs(pixels - redrawn).max(-1) > 64
    return None if wrong.mean() > 0.02 else Scene(_NAMES[ground], tuple(items))


def _read_cell(pixels: np.ndarray, nearest: np.ndarray, ground: int, place: str) -> tuple[Item, int, int] | None:
    counts = np.bincount(nearest.ravel(), minlength=len(_NAMES))
    counts[ground] = 0
    if counts.sum() < 30:
        return None
    colour = int(counts.argmax())
    axis = _PALETTE[colour] - _PALETTE[ground]
    mask = np.clip(((pixels - _PALETTE[ground]) @ axis) / (axis @ axis), 0, 1)
    shifts = range(-_READ_JITTER, _READ_JITTER + 1)
    candidates = [(s, z, dy, dx) for s in SHAPES for z in RADIUS for dy in shifts for dx in shifts]
    error = [np.abs(mask - _window(*c)).sum() for c in candidates]
    shape, size, dy, dx = candidates[int(np.argmin(error))]
    return Item(place, shape, _NAMES[colour], size), dy, dx


def caption_accuracy(pictures: list[np.ndarray], captions: list[str]) -> float:
    """Share of pictures whose scene, read back, equals the caption's.

    Raises:
        ValueError: a caption is not one of `caption`'s sentences.
    """
    scenes = [parse(text) for text in captions]
    unknown = [text for text, scene in zip(captions, scenes, strict=True) if scene is None]
    if unknown:
        raise ValueError(
            f"caption accuracy needs captions of scenes, got {unknown[0]!r}. "
            f"Write them like {caption(random_scene(np.random.default_rng(0)))!r}."
        )
    return float(np.mean([read(np.asarray(p)) == s for p, s in zip(pictures, scenes, strict=True)]))


def prompts(count: int, seed: int = 0, held_out: bool = True) -> list[str]:
    """Draw `count` different captions of held-out (or training) scenes."""
    rng = np.random.default_rng(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found[caption(random_scene(rng, held_out), rng)] = None
    return list(found)
