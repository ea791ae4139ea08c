"""Measure the Twin-Log quantizer: its error beside the limit, its size, its integer form, its speed.

    python benchmarks/twin_log.py                  # about two minutes; writes benchmarks/results/twin_log.json

Error: mean SQNR in dB of rows of 1152. `Lloyd` is the best of eight Lloyd-Max starts for every row: 2^bits free values
that follow the row. `behind` is what the fit lacks (bars: 0.15, Student-t 0.4). The default then corrects each row's
gain, <q,w> = <w,w>, which costs any least-squares code book of relative error D another 10 log10(1/(1-D)) dB and is
worth it in pictures; the last two columns compare both at that gain.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from scalar_books import FAMILIES, clipped_uniform, draw, gain_one, lloyd_max, sqnr_db
from torch import Tensor

from ditquant.formats import PackedWeight
from ditquant.quantizers import QUANTIZERS
from ditquant.specs import WeightSpec

ROWS, WIDTH = 128, 1152
BAR_DB = {"gaussian": 0.15, "laplace": 0.15, "student_t4": 0.4}
WIDTHS = (1152, 1536, 2304, 3072, 4608, 5120, 12288, 15360)
SHAPES = {"PixArt-XL attention": (1152, 1152), "PixArt-XL feed-forward": (4608, 1152), "FLUX attention": (3072, 3072)}


def twin_log(weight: Tensor, bits: int, **options) -> PackedWeight:
    return QUANTIZERS["twin_log"](weight, WeightSpec(bits, "twin_log"), **options)


def error(family: str, bits: int) -> dict[str, float]:
    """Mean SQNR of every row's best code books."""
    rows = draw(family, ROWS, WIDTH)
    lloyd = np.stack([lloyd_max(row, bits) for row in rows])
    weight = torch.from_numpy(rows)
    fit, corrected = twin_log(weight, bits, gain=False).dequantize(), twin_log(weight, bits)
    lloyd_corrected = np.stack([gain_one(row, found) for row, found in zip(rows, lloyd, strict=True)])
    values, scale = corrected.to_int8()
    levels = {
        "clipped_uniform": np.stack([clipped_uniform(row, bits) for row in rows]),
        "paper": twin_log(weight, bits, search="paper").dequantize(),
        "lloyd": lloyd,
        "fit": fit,
        "lloyd_gain": lloyd_corrected,
        "fit_gain": corrected.dequantize(),
        "fit_gain_int8": values * scale[:, None],
    }
    found = {name: float(sqnr_db(rows, value).mean()) for name, value in levels.items()}
    found["behind"] = found["lloyd"] - found["fit"]
    found["behind_gain"] = found["lloyd_gain"] - found["fit_gain"]
    return found | {"int8_cost": found["fit_gain"] - found["fit_gain_int8"]}


def bits_all_in(bits: int, width: int) -> float:
    """Bits a weight of codes and parameters together."""
    packed = twin_log(torch.randn(8, width, generator=torch.Generator().manual_seed(0)), bits)
    return 8 * packed.nbytes / (8 * width)


def speed(bits: int, shape: tuple[int, int], runs: int = 3) -> float:
    """Median of millions of weights a second."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    seconds = []
    for _ in range(runs):
        start = time.perf_counter()
        twin_log(weight, bits)
        seconds.append(time.perf_counter() - start)
    return weight.numel() / statistics.median(seconds) / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "twin_log.json")
    output = parser.parse_args().output
    columns = ("clipped_uniform", "paper", "lloyd", "fit", "behind", "lloyd_gain", "fit_gain", "behind_gain")
    print("mean SQNR, dB".ljust(14) + "".join(f"{name:>16}" for name in (*columns, "int8_cost")))
    errors = {}
    for family in FAMILIES:
        for bits in (3, 4):
            found = errors[f"{family} {bits}"] = error(family, bits)
            print(f"{family:12}{bits:2}" + "".join(f"{found[name]:16.2f}" for name in columns), end="")
            print(f"{found['int8_cost']:16.3f}   bar {BAR_DB[family]}")
    sizes = {str(width): {bits: bits_all_in(bits, width) for bits in (3, 4)} for width in WIDTHS}
    print("\nbits a weight all-in (bars at width >= 1152: 3.15 and 4.15)")
    for width, found in sizes.items():
        print(f"{width:>6}" + "".join(f"{value:8.3f}" for value in found.values()))
    print(f"\nmillion weights a second on {torch.get_num_threads()} threads (bar: 5)")
    speeds = {name: {bits: speed(bits, shape) for bits in (3, 4)} for name, shape in SHAPES.items()}
    for name, found in speeds.items():
        print(f"{name:24}" + "".join(f"{value:8.1f}" for value in found.values()))
    versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    results = {"versions": versions, "sqnr_db": errors, "bits_all_in": sizes, "million_weights_per_second": speeds}
    output.write_text(json.dumps(results, indent=1) + "\n")
    print(f"\nwritten: {output}")


if __name__ == "__main__":
    main()
