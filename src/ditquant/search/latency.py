"""Milliseconds of a layer with a gene, from a table that is measured where it has gaps.

The table is a JSON file of one mapping, `384 -> 1536, 128 rows, w4a8 affine g128 hadamard` to milliseconds: shapes, not
names of layers, so that one table of a machine serves every model. Give the table of the machine that will paint.
"""

import json
import math
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import torch

from ditquant.atomic import atomic_file
from ditquant.errors import DitQuantError
from ditquant.search.layers import LayerCache
from ditquant.search.space import Gene

RUNS = 7


class Latencies:
    """A table, and the layers that it is measured with; `tokens` are their rows a sample."""

    def __init__(self, path: Path, layers: LayerCache, tokens: Mapping[str, float]):
        self.path, self.layers, self.tokens = path, layers, tokens
        self.table = read_table(path) if path.exists() else {}
        self.known = set(self.table)

    def ms(self, name: str, gene: Gene) -> float:
        """Return a layer's median time for the rows of one sample; what was not in the table is added to it."""
        key = self.key(name, gene)
        if key not in self.table:
            self.table[key] = self._measure(name, gene)
            with atomic_file(self.path, overwrite=True) as part:
                part.write_text(json.dumps(dict(sorted(self.table.items())), indent=1) + "\n", encoding="utf-8")
        return self.table[key]

    def key(self, name: str, gene: Gene) -> str:
        """Return the words that a layer with a gene has in a table."""
        layer, rule = self.layers.space.searched[name]
        scheme = f"w{gene.bits}a{rule.activation.bits} {gene.format} g{gene.groups}"
        rotation = "" if gene.rotation == "none" else f" {gene.rotation}"
        return f"{layer.in_features} -> {layer.out_features}, {self._rows(name)} rows, {scheme}{rotation}"

    def _rows(self, name: str) -> int:
        return math.ceil(self.tokens[name])

    @torch.no_grad()
    def _measure(self, name: str, gene: Gene) -> float:
        made, linear = self.layers.get(name, gene), self.layers.linears[name]
        x = torch.randn(1, self._rows(name), linear.in_features, generator=torch.Generator().manual_seed(0))
        x = x.to(linear.weight)
        times = []
        for _ in range(RUNS + 1):  # the first one makes what is kept
            begin = time.perf_counter()
            made(x)
            if x.is_cuda:
                torch.cuda.synchronize(x.device)
            times.append(1e3 * (time.perf_counter() - begin))
        return statistics.median(times[1:])


def read_table(path: Path) -> dict[str, float]:
    """Read a table.

    Raises:
        DitQuantError: no mapping of words to positive milliseconds.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(table, dict) or not all(0 < float(ms) < math.inf for ms in table.values()):
            raise ValueError("a mapping of words to positive numbers is expected")
    except (OSError, ValueError, TypeError) as error:
        raise DitQuantError(f"{path} is no table of latencies ({error}). Name another file, or one to make.") from None
    return {str(key): float(ms) for key, ms in table.items()}
