"""Measure reordered, sparse and quantized attention on maps with a known structure, and the tile skipping on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/attention.py    # a few minutes; writes benchmarks/results/attention.json

A map: every token of a group (the same frame, the same place in all frames, ...) shares a random direction of 256
channels, queries and keys add Gaussian noise of their own. Values have a part that the group shares, so that what is
lost by dropping tiles is not averaged away. Errors are relative, in the Frobenius norm, against dense float64.

Speed: no figure is printed for a kernel that does not agree with the reference.
"""

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from ditquant.attention import ORDERS, Criterion, TokenGrid, attend, fit_attention
from ditquant.attention.criterion import SELECT, score_orders
from ditquant.attention.stripes import attend_dense, attend_reference, attend_skipping

GRIDS = (TokenGrid(6, 12, 15), TokenGrid(13, 15, 23))
GROUPS: dict[str, Callable[..., torch.Tensor]] = {
    "same frame": lambda f, h, w, grid: f,
    "same place": lambda f, h, w, grid: h * grid.width + w,
    "same row, all frames": lambda f, h, w, grid: h,
    "same column, all frames": lambda f, h, w, grid: w,
    "same row": lambda f, h, w, grid: f * grid.height + h,
    "same column": lambda f, h, w, grid: f * grid.width + w,
}
WIDTH, DENSITY = 256, 0.25
SPEED_GRID, SPEED_HEADS, SPEED_WIDTH = TokenGrid(13, 15, 23, text=226), 2, 64


def structured(grid: TokenGrid, group: str, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """q, k, v [1, 1, S, 256] of one head whose tokens attend within groups."""
    generator = torch.Generator().manual_seed(seed)
    axes = (torch.arange(n) for n in (grid.frames, grid.height, grid.width))
    f, h, w = (x.flatten() for x in torch.meshgrid(*axes, indexing="ij"))
    index = GROUPS[group](f, h, w, grid)
    draws = [torch.randn(n, WIDTH, generator=generator) for n in (int(index.max()) + 1, *[len(index)] * 3)]
    q, k = (12 * F.normalize(draws[0], dim=-1)[index] + 0.5 * noise for noise in draws[1:3])
    return q[None, None], k[None, None], (draws[0][index] + draws[3])[None, None]


def relative(x: torch.Tensor, exact: torch.Tensor) -> float:
    """Return the relative error in the Frobenius norm."""
    return float((x.double() - exact).norm() / exact.norm())


def orders(grid: TokenGrid, group: str) -> dict:
    """What each criterion chooses, and the mass its choice keeps."""
    q, k, _ = structured(grid, group)
    scores = score_orders(q, k, grid, Criterion(), DENSITY)
    chosen = {select: int(scores.best(Criterion(select))) for select in SELECT}
    return {select: (ORDERS[i], round(float(scores.mass[0, i]), 3)) for select, i in chosen.items()}


def errors(grid: TokenGrid, group: str) -> dict[str, tuple[float, float]]:
    """Errors in the tokens' own order and in the order that keeps most."""
    q, k, v = structured(grid, group)
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    best = score_orders(q, k, grid, Criterion(), DENSITY).best(Criterion("mass"))
    found: dict[str, list[float]] = {}
    for order in (torch.zeros(1, dtype=torch.long), best):
        for name, bits in (("int8", (8, 8)), ("int4", (4, 4))):
            out = attend(q, k, v, grid=grid, order=order, qk_bits=bits[0], pv_bits=bits[1])
            found.setdefault(name, []).append(relative(out, exact))
        index = grid.indices(order)[0]
        plain = TokenGrid(1, 1, grid.tokens)  # the order is in the sequence: masks are fitted for it as it stands
        for density in (0.5, 0.25):
            reordered = [x[:, :, index] for x in (q, k, v)]
            mask = fit_attention([(0, 0, *reordered[:2])], plain, density=density).plan.mask(0, 0)
            out = attend(*reordered, grid=plain, order=torch.tensor([0]), mask=mask)
            found.setdefault(f"density {density}", []).append(relative(out, exact[:, :, index]))
    return {name: tuple(pair) for name, pair in found.items()}


def speed() -> dict[str, float]:
    """Milliseconds of a call on random tokens and masks, best of three."""
    grid, generator = SPEED_GRID, torch.Generator().manual_seed(0)
    shape = (1, SPEED_HEADS, grid.tokens, SPEED_WIDTH)
    q, k, v = (torch.randn(shape, generator=generator) for _ in range(3))
    found = {"torch, dense": best_of_three(lambda: attend_dense(q, k, v))}
    for density in (1.0, 0.5, 0.3, 0.2):
        keep = torch.rand(SPEED_HEADS, grid.tiles, grid.tiles, generator=generator) < density
        keep |= torch.eye(grid.tiles, dtype=torch.bool)
        for name, bits in (("float", None), ("int8", 8)):
            reference = attend_reference(q, k, v, keep, bits, bits)
            if relative(attend_skipping(q, k, v, keep, bits, bits), reference.double()) > 1e-3:
                raise SystemExit(f"the skipping kernel is wrong at density {density}, {name}: no speed is reported")
            key = f"skipping {density:.0%} {name}"
            found[key] = best_of_three(lambda keep=keep, bits=bits: attend_skipping(q, k, v, keep, bits, bits))
    return found


def best_of_three(call: Callable[[], object]) -> float:
    """Return the shortest of three calls in milliseconds."""
    times = []
    for _ in range(3):
        start = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - start))
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    output = parser.parse_args().output
    chosen, lost = {}, {}
    print(f"order chosen, mass kept at density {DENSITY}")
    for grid in GRIDS:
        for group in GROUPS:
            found = chosen[f"{grid}, {group}"] = orders(grid, group)
            print(f"{grid!s:>28} {group:>24}  " + "  ".join(f"{s} {o} {m:.2f}" for s, (o, m) in found.items()))
    print("relative error: own order FHW -> order of the largest mass")
    for group in GROUPS:
        found = lost[group] = errors(GRIDS[0], group)
        print(f"{group:>24}  " + "   ".join(f"{name} {a:.4f} -> {b:.4f}" for name, (a, b) in found.items()))
    times = speed()
    print(f"{SPEED_HEADS} heads of {SPEED_GRID}, {torch.get_num_threads()} thread(s), ms")
    for name, ms in times.items():
        print(f"{name:>24} {ms:9.1f}")
    versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    output.parent.mkdir(parents=True, exist_ok=True)
    result = {"versions": versions, "orders": chosen, "errors": lost, "cpu_ms": times}
    output.write_text(json.dumps(result, indent=1) + "\n")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
