"""What `accuracy.py` measures: the recipes of the table, of the ablations, and of the weights with salient channels."""

from dataclasses import dataclass
from typing import Any

from ditquant.recipe import Recipe, list_recipes

METHODS = (
    "rtn",
    "smoothquant",
    "quarot",
    "duquant",
    "vidit-q",
    "gptq",
    "svdquant",
    "lrq",
    "lrq-gptq",
    "lrq-plus-lean",
    "lrq-plus",
)
OURS = METHODS[-2:]
HARD = ("w4a8", "w3a8", "w4a4", "w3a4")  # what the bars are about: measured with all seeds
BITS = (*HARD, "w8a8", "w6a6", "w4a6", "w3a6", "w4a16", "w3a16")  # the others: with one
SEEDS = 3
PROMPTS = 8  # that calibrate; as many others are tested with
SALIENT_BITS = "w4a4"

SMOOTH = {"kind": "smooth", "options": {"alpha": 0.5}}
GROUP = {"granularity": "group", "group_size": 64}
CLIPS = [0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 1.0]


@dataclass(frozen=True)
class Row:
    """One recipe of a table; `prompts` calibrate it, `salient` injects channels first."""

    table: str
    name: str
    bits: str
    recipe: Recipe
    seed: int
    prompts: int = PROMPTS
    salient: bool = False


def recipe(name: str, bits: str, **rule: Any) -> Recipe:
    """Make a recipe with one rule for all layers, at some bits."""
    rules = [{"target": "role:*", "activation": {"granularity": "token"}, "transforms": [], **rule}]
    return Recipe.from_dict({"name": name, "variants": [bits], "rules": rules})


def adaptive(select: str) -> dict[str, Any]:
    return {"kind": "adaptive_rotation", "options": {"threshold": 1.0, "select": select}}


def _twin(**rule: Any) -> dict[str, Any]:
    return {"weight": {"format": "twin_log"}, "quantizer": "twin_log"} | rule


def _gptq(**rule: Any) -> dict[str, Any]:
    return {"weight": {"format": "twin_log"}, "quantizer": "gptq", "transforms": ["hadamard"]} | rule


BOTH = [SMOOTH, adaptive("metric")]
ABLATIONS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "Weights (smoothing, adaptive rotation)": (
        "w3a8",
        {
            "uniform, min-max": {"weight": {"format": "affine"}, "quantizer": "rtn", "transforms": BOTH},
            "uniform, clipped, gain mended": {
                "weight": {"format": "affine"},
                "quantizer": "rtn",
                "quantizer_options": {"clip": "mse"},
                "transforms": BOTH,
            },
            "Twin-Log, the paper's search": _twin(quantizer_options={"search": "paper"}, transforms=BOTH),
            "Twin-Log, fitted, gain not mended": _twin(quantizer_options={"gain": False}, transforms=BOTH),
            "Twin-Log": _twin(transforms=BOTH),
        },
    ),
    "Rotation (smoothing, Twin-Log)": (
        "w4a4",
        {
            "none": _twin(transforms=[SMOOTH]),
            "Hadamard only": _twin(transforms=[SMOOTH, "hadamard"]),
            "dual only": _twin(transforms=[SMOOTH, "fast_dual_rotation"]),
            "adaptive, by J": _twin(transforms=BOTH),
            "adaptive, by the output's error": _twin(transforms=[SMOOTH, adaptive("error")]),
        },
    ),
    "Smoothing (adaptive rotation by J, Twin-Log)": (
        "w4a4",
        {"off": _twin(transforms=[adaptive("metric")]), "on": _twin(transforms=BOTH)},
    ),
    "What lrq-plus adds, weights (Hadamard)": (
        "w3a8",
        {
            "Twin-Log": _twin(transforms=["hadamard"]),
            "+ compensation over inputs": _gptq(),
            "+ over outputs": _gptq(quantizer_options={"joint": True}),
        },
    ),
    "What lrq-plus adds, activations (Hadamard, Twin-Log with joint compensation)": (
        "w4a4",
        {
            "a scale a token": _gptq(quantizer_options={"joint": True}),
            "+ fitted clip": _gptq(quantizer_options={"joint": True}, choose={"clip": CLIPS}),
            "+ groups of 64": _gptq(quantizer_options={"joint": True}, choose={"clip": CLIPS}, activation=GROUP),
            "+ asymmetric": _gptq(
                quantizer_options={"joint": True}, choose={"clip": CLIPS}, activation=GROUP | {"symmetric": False}
            ),
            "+ rank 32": _gptq(
                quantizer_options={"joint": True},
                choose={"clip": CLIPS},
                activation=GROUP | {"symmetric": False},
                rank=32,
            ),
        },
    ),
}
CALIBRATION = "Calibration prompts (lrq-gptq)"
CALIBRATION_PROMPTS = (1, 2, 8, 32)
PAINTED, FULL = "captions", "full precision"
SALIENT = "Injected salient channels"
SALIENT_RECIPES = {
    "none": _twin(transforms=[SMOOTH]),
    "Hadamard only": _twin(transforms=[SMOOTH, "hadamard"]),
    "dual only": _twin(transforms=[SMOOTH, "fast_dual_rotation"]),
    "adaptive, by J": _twin(transforms=BOTH),
}
SALIENT_METHODS = ("rtn", "smoothquant", "quarot", "duquant", "vidit-q", "svdquant", "lrq", "lrq-plus")


def rows(methods: tuple[str, ...] = METHODS, bits: tuple[str, ...] = BITS, seeds: int = SEEDS) -> list[Row]:
    """Return all rows: what the bars need with every seed first, then one seed of what is left."""

    def of(seed: int, widths: tuple[str, ...], names: tuple[str, ...]) -> list[Row]:
        known = list_recipes()
        pairs = [(b, m) for b in widths if b in bits for m in names if m in methods and f"{m}-{b}" in known]
        return [Row("methods", m, b, Recipe.load(f"{m}-{b}"), seed) for b, m in pairs]

    peers = tuple(m for m in METHODS if m not in OURS)
    found = of(0, HARD, METHODS)
    for seed in range(seeds):
        found += of(seed, ("w8a8",), ("rtn",)) + of(seed, HARD, peers)
    found += _salient()
    for seed in range(seeds):
        found += of(seed, HARD, OURS) + _painted(seed)
    found += of(0, tuple(b for b in BITS if b not in HARD), METHODS) + _ablations()
    return [row for i, row in enumerate(found) if row not in found[:i]]


def _salient() -> list[Row]:
    made = {name: recipe(name, SALIENT_BITS, **rule) for name, rule in SALIENT_RECIPES.items()}
    made |= {method: Recipe.load(f"{method}-{SALIENT_BITS}") for method in SALIENT_METHODS}
    return [Row(SALIENT, name, SALIENT_BITS, r, 0, salient=True) for name, r in made.items()]


def _painted(seed: int) -> list[Row]:
    """Rows that paint pictures; full precision has a recipe in name only."""
    chosen = Recipe.load("lrq-plus-w4a8")
    return [Row(PAINTED, name, "w4a8", chosen, seed) for name in (FULL, "lrq-plus")]


def _ablations() -> list[Row]:
    found = []
    for table, (b, variants) in ABLATIONS.items():
        found += [Row(table, name, b, recipe(name, b, **rule), 0) for name, rule in variants.items()]
    chosen = Recipe.load("lrq-gptq-w4a8")
    return found + [Row(CALIBRATION, str(n), "w4a8", chosen, 0, prompts=n) for n in CALIBRATION_PROMPTS]
