"""Measure reordered, sparse and quantized attention: on maps with a known structure, and how fast it is on a CPU.

    OMP_NUM_THREADS=2 python benchmarks/attention.py                 # all four; some ten minutes
    OMP_NUM_THREADS=2 python benchmarks/attention.py --only speed    # maps, speed, fit or model

maps     A map: every token of a group (the same frame, the same place in all frames, ...) shares a random direction of
         256 channels, queries and keys add Gaussian noise of their own. Values have a part that the group shares, so
         that what is lost by dropping tiles is not averaged away. Errors are relative, in the Frobenius norm, against
         dense float64.
speed    `attend` with all that belongs to it against torch's own attention, calls taking turns, medians. No figure is
         printed for a result that errs more than twice as much as torch's or the naive simulation's.
fit      A plan for one block of CogVideoX: 17,776 tokens, 48 heads.
model    Two blocks of a CogVideoX-2B with random weights, beside what Amdahl's law allows.

Figures go into benchmarks/results/attention.json, each section by itself.
"""

import argparse
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch.nn import functional as F

from ditquant.attention import ORDERS, AttentionPlan, Criterion, TokenGrid, apply_plan, attend, fit_attention
from ditquant.attention.bits import pack_mask
from ditquant.attention.criterion import SELECT, score_orders
from ditquant.attention.stripes import attend_reference

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
SPEED_GRID, SPEED_HEADS, SPEED_WIDTH = TokenGrid(4, 32, 32), 8, 64


def structured(
    grid: TokenGrid, group: str, seed: int = 0, width: int = WIDTH, strength: float = 12.0
) -> tuple[torch.Tensor, ...]:
    """q, k, v [1, 1, S, width] of one head whose tokens attend within groups."""
    generator = torch.Generator().manual_seed(seed)
    axes = (torch.arange(n) for n in (grid.frames, grid.height, grid.width))
    f, h, w = (x.flatten() for x in torch.meshgrid(*axes, indexing="ij"))
    index = GROUPS[group](f, h, w, grid)
    draws = [torch.randn(n, width, generator=generator) for n in (int(index.max()) + 1, *[len(index)] * 3)]
    q, k = (strength * F.normalize(draws[0], dim=-1)[index] + 0.5 * noise for noise in draws[1:3])
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


def speed() -> dict[str, dict[str, float]]:
    """Milliseconds and how many times as fast as torch, medians of calls that take turns."""
    grid, order = SPEED_GRID, torch.arange(SPEED_HEADS) % 6
    generator = torch.Generator().manual_seed(0)
    shape = (1, SPEED_HEADS, grid.tokens, SPEED_WIDTH)
    q, k, v = (torch.randn(shape, generator=generator).bfloat16() for _ in range(3))
    calls = {"torch": lambda: F.scaled_dot_product_attention(q, k, v)}
    for density in (None, 1.0, 0.5, 0.3, 0.2):
        mask = None
        if density is not None:
            mask = torch.rand(SPEED_HEADS, grid.tiles, grid.tiles, generator=generator) < density
            mask |= torch.eye(grid.tiles, dtype=torch.bool)
        for bits in ((None, None), (8, None), (8, 8), (4, 4)):
            settings = {"mask": mask, "qk_bits": bits[0], "pv_bits": bits[1]}
            check_speed(q, k, v, order, settings)
            name = ", ".join(("bf16" if n is None else f"INT{n}") for n in bits)
            key = f"{'no mask' if density is None else f'density {density:.0%}'}, QK and PV {name}"
            calls[key] = lambda settings=settings: attend(q, k, v, grid=grid, order=order, **settings)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(7):
        for name, call in calls.items():
            times[name].append(milliseconds(call))
    median = {name: statistics.median(each) for name, each in times.items()}
    return {name: {"ms": round(ms, 2), "times torch": round(median["torch"] / ms, 2)} for name, ms in median.items()}


def check_speed(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, order: torch.Tensor, settings: dict) -> None:
    """Stop where the result errs too much; one head is enough, the others run the same code."""
    mask, bits = settings["mask"], (settings["qk_bits"], settings["pv_bits"])
    one = [x[:, 3:4] for x in (q, k, v)]
    keep = None if mask is None else mask[3:4]
    index = SPEED_GRID.indices(order[3:4])[0]
    reordered = [x[:, :, index].float() for x in one]
    exact = attend_reference(*reordered, keep, None, None)
    out = attend(*one, grid=SPEED_GRID, order=order[3:4], mask=keep, qk_bits=bits[0], pv_bits=bits[1])[:, :, index]
    naive = attend_reference(*reordered, keep, *bits)
    torchs = F.scaled_dot_product_attention(*one)[:, :, index]
    allowed = 2 * (relative(naive, exact) + relative(torchs, attend_reference(*reordered, None, None, None)))
    if not relative(out, exact) <= allowed:
        raise SystemExit(f"attention is wrong with {settings}: no speed is reported")


def milliseconds(call: Callable[[], object]) -> float:
    """Return how long a call takes."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def fit() -> dict[str, object]:
    """Seconds and memory of a plan for one block, with a quarter of the stripes, and what all of them would choose."""
    grid, heads = TokenGrid(13, 30, 45, text=226), 48
    plain = replace(grid, text=0)  # maps from nearly flat to peaked
    maps = [structured(plain, group, i, 64, 5 + i / 2) for i in range(8) for group in GROUPS]
    text = torch.randn(1, heads, grid.text, 64, generator=torch.Generator().manual_seed(0))
    q, k = (torch.cat([text, torch.cat([one[which] for one in maps], 1)], 2) for which in (0, 1))
    del maps
    found: dict[str, object] = {}
    fits = []
    for name, sample in (("a quarter of the stripes", 0.25), ("all stripes", 1.0)):
        start = time.perf_counter()
        fits.append(fit_attention([(0, 0, q, k)], grid, density=0.3, criterion=Criterion("mass", sample=sample)))
        seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        kept, mass = fits[-1].plan.kept(0, 0), float(fits[-1].mass.mean())
        found[name] = {
            "seconds": round(seconds, 1),
            "peak GiB": round(peak, 2),
            "density": kept,
            "mass": round(mass, 5),
        }
        print(f"{name}: {found[name]}", flush=True)
    chosen = [torch.tensor([grid.candidates().index(int(o)) for o in fitted.plan.orders[0]]) for fitted in fits]
    masses = [fits[1].scores.mass[0].gather(1, choice[:, None])[:, 0] for choice in chosen]
    found["heads with the same order"] = f"{int((chosen[0] == chosen[1]).sum())} of {heads}"
    found["most mass that a head loses by the other order"] = float((masses[1] - masses[0]).max())
    found["density error"] = abs(fits[0].plan.kept(0, 0) - 0.3)
    return found


def model() -> dict[str, object]:
    """Seconds of a call of two blocks, dense by torch and by plans, and the limit that attention's share sets."""
    from diffusers import CogVideoXTransformer3DModel

    grid, heads = TokenGrid(13, 30, 45, text=226), 30
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(num_layers=2, num_attention_heads=heads, attention_head_dim=64)
    transformer = transformer.eval().bfloat16()
    given = {
        "hidden_states": torch.randn(1, 13, 16, 60, 90).bfloat16(),
        "encoder_hidden_states": torch.randn(1, 226, 4096).bfloat16(),
        "timestep": torch.tensor([500]),
    }
    mask = torch.rand(2 * heads, grid.tiles, grid.tiles) < 0.3 * 0.98
    mask |= torch.eye(grid.tiles, dtype=torch.bool) | grid.text_tiles()
    orders = (torch.arange(2 * heads) % 6).view(2, heads).byte()
    masks = pack_mask(mask).view(1, 2, heads, -1)
    plans = {
        "torch": None,
        "dense plan": AttentionPlan(grid, orders),
        "density 30 %": AttentionPlan(grid, orders, masks, density=0.3),
        "density 30 %, INT8": AttentionPlan(grid, orders, masks, qk_bits=8, pv_bits=8, density=0.3),
    }
    times: dict[str, list[float]] = {name: [] for name in plans}
    inside: list[float] = []
    for _ in range(3):
        for name, plan in plans.items():
            undo = (lambda: None) if plan is None else apply_plan(transformer, plan)
            with torch.no_grad(), timed_torch_attention(inside if plan is None else []):
                times[name].append(milliseconds(lambda: transformer(**given)))
            undo()
    median = {name: statistics.median(each) / 1000 for name, each in times.items()}
    share = sum(inside) / sum(times["torch"])
    result: dict[str, object] = {"density really kept": round(float(mask.double().mean()), 4)}
    result["share of attention"] = round(share, 3)
    result["limit if attention took no time"] = round(1 / (1 - share), 2)
    for name, seconds in median.items():
        result[name] = {"seconds": round(seconds, 2), "times torch": round(median["torch"] / seconds, 2)}
    return result


@contextmanager
def timed_torch_attention(times: list[float]) -> Iterator[None]:
    """Add the milliseconds of every call of torch's attention to `times`."""
    own = F.scaled_dot_product_attention

    def timed(*args: object, **kwargs: object) -> torch.Tensor:
        start = time.perf_counter()
        result = own(*args, **kwargs)
        times.append(1000 * (time.perf_counter() - start))
        return result

    F.scaled_dot_product_attention = timed
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def maps() -> dict[str, object]:
    """What every criterion chooses, and what is lost, on maps with a known structure."""
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
    return {"orders": chosen, "errors": lost}


SECTIONS = {"maps": maps, "speed": speed, "fit": fit, "model": model}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "attention.json")
    asked = parser.parse_args()
    result = json.loads(asked.output.read_text()) if asked.output.exists() else {}
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    for name in asked.only:
        found = SECTIONS[name]()
        threads = torch.get_num_threads()
        versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": threads}
        result[name] = {"versions": versions | {"machine": machine()}, "figures": found}
        asked.output.write_text(json.dumps(result, indent=1) + "\n")
        if name != "maps":
            print(json.dumps(found, indent=1))
    print(f"written: {asked.output}")


def machine() -> str:
    """Name the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
