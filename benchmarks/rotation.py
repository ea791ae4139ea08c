"""Measure the transforms: their exactness law at the widths that occur, and what rotations save at 4 bits.

    python benchmarks/rotation.py                  # under a minute; writes benchmarks/results/rotation.json

Law: largest float64 error of forward(x) @ absorb(w).T against x @ w.T (bar: 1e-10), and the RMS error of the same in
bfloat16 over that of the plain bfloat16 product (bar: 2; rounding input, weight and output once each gives 1.73).

Rotations: mean SQNR of unseen tokens after 4-bit symmetric quantization per token, fitted on 512 other tokens of the
same layer, mean of two layers. A layer's inputs are Gaussian with channel scales exp(0.3 n), which reach about 5, and
16 fixed channels at random places whose size is drawn log-uniformly from 20 to 245, with a fixed sign and 20 % of
fluctuation from token to token. Token SQNR counts energy, of which salient channels hold nearly all: `none` looks good
by it while every other channel is rounded to zero, as the SQNR over those shows.
"""

import argparse
import json
import platform
import time
from pathlib import Path

import torch

from ditquant.stats import LayerStats
from ditquant.transforms import FITTERS, TRANSFORMS
from ditquant.transforms.fake_quantize import fake_quantize, sqnr_db, token_sqnr_db

# fmt: off
WIDTHS = [
    63, 71, 72, 96, 128, 256, 320, 384, 1000, 1120, 1152, 1408, 1536, 1920, 2048, 2304, 2432, 3072, 3840, 4096, 4608,
    5120, 6144, 8960, 9728, 12288, 13824, 15360,
]
# fmt: on
ROTATIONS = {
    "none": None,
    "block hadamard": ("hadamard", {}),
    "full hadamard": ("hadamard", {"block": None}),
    "dual": ("dual_rotation", {}),
    "fast dual": ("fast_dual_rotation", {}),
}
SALIENT_WIDTHS = (1152, 3072, 4608)
SALIENT_CHANNELS = 16
LAYERS = 2
TOKENS = 512


class Layer:
    """One synthetic layer's inputs; its channels are fixed, its tokens are drawn."""

    def __init__(self, width: int, seed: int):
        generator = torch.Generator().manual_seed(seed)
        self.scale = torch.exp(0.3 * torch.randn(width, generator=generator))
        self.channels = torch.randperm(width, generator=generator)[:SALIENT_CHANNELS]
        sizes = 20 * (245 / 20) ** torch.rand(SALIENT_CHANNELS, generator=generator)
        self.sizes = sizes * torch.randn(SALIENT_CHANNELS, generator=generator).sign()

    def draw(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(TOKENS, len(self.scale), generator=generator) * self.scale
        fluctuation = torch.randn(TOKENS, SALIENT_CHANNELS, generator=generator)
        x[:, self.channels] = self.sizes * (1 + 0.2 * fluctuation)
        return x


def stats_of(x: torch.Tensor) -> LayerStats:
    stats = LayerStats(x.shape[1])
    stats.update(x)
    return stats


def law(kind: str, width: int) -> dict[str, float]:
    """Errors of one transform at one width."""
    generator = torch.Generator().manual_seed(width)
    x, w = (torch.randn(64, width, generator=generator) for _ in range(2))
    transform = FITTERS[kind](w, stats_of(x[:8]))
    wide = transform(x.double()) @ transform.absorb(w.double()).T - x.double() @ w.double().T
    x, w = x.bfloat16(), w.bfloat16()
    truth = x.double() @ w.double().T
    error, naive = (y.double() - truth for y in (transform(x) @ transform.absorb(w).T, x @ w.T))
    return {"float64_max_abs": float(wide.abs().max()), "bf16_ratio": float(error.norm() / naive.norm())}


def rotation(name: str, width: int) -> dict[str, float]:
    """SQNR of unseen tokens, and over the other channels alone, mean over layers; seconds of a fit."""
    rows = []
    for seed in range(LAYERS):
        layer = Layer(width, seed)
        seen, unseen = layer.draw(1), layer.draw(2)
        start = time.perf_counter()
        kind = ROTATIONS[name]
        transform = FITTERS[kind[0]](torch.ones(1, width), stats_of(seen), **kind[1]) if kind else None
        seconds = time.perf_counter() - start
        y = unseen if transform is None else transform(unseen)
        # absorbing the identity gives the map back to the original channels
        back = fake_quantize(y, 4) if transform is None else fake_quantize(y, 4) @ transform.absorb(torch.eye(width)).T
        others = torch.ones(width, dtype=torch.bool).index_fill_(0, layer.channels, False)
        rows.append((token_sqnr_db(y, 4), sqnr_db(unseen[:, others], back[:, others]), seconds))
    token, other, seconds = torch.tensor(rows).mean(0).tolist()
    return {"token_sqnr_db": token, "other_channels_sqnr_db": other, "fit_seconds": seconds}


def print_laws(laws: dict[str, dict[int, dict[str, float]]]) -> None:
    print(f"{'width':>6}  " + "  ".join(f"{kind:>22}" for kind in laws))
    for width in WIDTHS:
        cells = (f"{laws[k][width]['float64_max_abs']:12.1e} {laws[k][width]['bf16_ratio']:9.2f}" for k in laws)
        print(f"{width:>6}  " + "  ".join(cells))
    every = [entry for entries in laws.values() for entry in entries.values()]
    worst = max(e["float64_max_abs"] for e in every), max(e["bf16_ratio"] for e in every)
    print(f"worst: float64 {worst[0]:.1e} (bar 1e-10), bf16 {worst[1]:.2f} times naive (bar 2)\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parent / "results" / "rotation.json")
    output = parser.parse_args().output
    print("law: float64 max abs error, bf16 error over naive")
    laws = {kind: {width: law(kind, width) for width in WIDTHS} for kind in sorted(TRANSFORMS)}
    print_laws(laws)
    print("4-bit tokens, salient inputs, unseen: token SQNR dB / SQNR dB of the other channels / seconds to fit")
    rotations = {name: {width: rotation(name, width) for width in SALIENT_WIDTHS} for name in ROTATIONS}
    for name, entries in rotations.items():
        cells = ("{:6.2f} {:7.2f} {:5.2f}".format(*entry.values()) for entry in entries.values())
        print(f"{name:>16}  " + "   ".join(cells))
    versions = {"torch": torch.__version__, "python": platform.python_version(), "threads": torch.get_num_threads()}
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"versions": versions, "law": laws, "rotation": rotations}, indent=1) + "\n")
    print(f"written: {output}")


if __name__ == "__main__":
    main()
