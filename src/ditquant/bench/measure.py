"""One measurement: all contestants in turn, their medians, ratios, bytes and errors."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from ditquant.bench.breakdown import breakdown
from ditquant.bench.contestants import Contestant, compiled, dense, is_quantized, quantized
from ditquant.bench.elsewhere import sdnq
from ditquant.bench.loading import loading
from ditquant.bench.machine import machine
from ditquant.bench.memory import stored_bytes
from ditquant.bench.peers import peers
from ditquant.bench.subject import Subject
from ditquant.bench.timing import interleave, median_ms, ratio, sqnr_db
from ditquant.models import find_linears


@torch.no_grad()
def measure(
    subject: Subject,
    recipes: Sequence[str | None],
    modes: tuple[str, ...] = ("memory", "speed"),
    rounds: int = 5,
    with_peers: bool = True,
    sdnq_python: Path | None = None,
    parts: bool = True,
    load: bool = False,
    compile: bool = False,
    tell: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Measure full precision, every recipe in every mode (None: the model as it is quantized), and other packages.

    `compile` measures full precision and ours compiled by torch too, beside what runs eagerly.
    A contestant whose output is not finite gets no speed. Returns what the JSON file holds.

    Raises:
        DitQuantError: a recipe that does not fit, or an interpreter that does not exist.
    """
    left_out: dict[str, str] = {}
    first = dense(subject)
    exact = subject.exact() if recipes != [None] else first.output.float()
    with ExitStack() as stack:
        contestants = [first]
        for recipe in recipes:
            tell(f"quantizing with {recipe}" if recipe else "taking it as it is quantized")
            contestants += quantized(subject, recipe, modes)
        if compile:
            tell("compiling")
            contestants += compiled(tuple(contestants), subject, left_out)
        if with_peers and recipes != [None]:
            tell("preparing other packages")
            contestants += peers(subject, left_out)
        if sdnq_python is not None:
            contestants += stack.enter_context(sdnq(subject, sdnq_python, left_out))
        sound = [c for c in contestants if bool(torch.isfinite(c.output).all())]
        left_out |= {c.name: "its output is not finite" for c in contestants if c not in sound}
        tell(f"{rounds} rounds of {len(sound)} contestants")
        seconds = interleave({c.name: c.run for c in sound}, rounds)
    rows = {c.name: _row(c, first, exact, seconds) for c in sound}
    for contestant in sound:
        row, made = rows[contestant.name], contestant.model is not None and is_quantized(contestant.model)
        if parts and made:
            tell(f"operators of {contestant.name}")
            row["parts"] = breakdown(contestant.model, subject, row["ms"], rounds)
        if load and (made or contestant is first):
            tell(f"loading {contestant.name}")
            row["loading"] = loading(contestant.model, subject.arguments, subject.device)
    facts = machine(subject.device) | {"rounds": rounds, "subject": dict(subject.facts)}
    return facts | {"model": rows, "left_out": left_out}


def _row(
    contestant: Contestant, first: Contestant, exact: torch.Tensor, seconds: dict[str, list[float]]
) -> dict[str, Any]:
    grown, blocks = contestant.growth_bytes, _blocks_bytes(contestant)
    return {
        "ms": round(median_ms(seconds[contestant.name]), 2),
        "ratio": round(ratio(seconds, contestant.name, first.name), 3),
        "bytes_ratio": round(contestant.held_bytes / first.held_bytes, 3),
        "blocks_ratio": None if blocks is None else round(blocks / _blocks_bytes(first), 3),
        "held_mb": round(contestant.held_bytes / 1e6, 1),
        "peak_mb": None if grown is None else round((contestant.held_bytes + grown) / 1e6, 1),
        "file_mb": None if contestant.file_bytes is None else round(contestant.file_bytes / 1e6, 1),
        "sqnr_db": round(sqnr_db(exact, contestant.output), 1),
    }


def _blocks_bytes(contestant: Contestant) -> int | None:
    """Bytes of the blocks with all that is kept, where they are ours to count."""
    model = contestant.model
    if model is None:
        return None
    blocks = sum(stored_bytes(model.get_submodule(path)) for path in find_linears(model).blocks)
    return blocks + contestant.held_bytes - stored_bytes(model)
