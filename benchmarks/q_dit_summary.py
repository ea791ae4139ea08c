"""What `q_dit.py` says of its samples: means with intervals, and differences on the samples that two rows share."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from q_dit_rows import BITS, BLOCK, FULL, GROUPS, PRODUCTS, Row, ladder, uniform

from ditquant.evaluation.digits import Judge
from ditquant.evaluation.intervals import interval, paired_interval
from ditquant.evaluation.metrics.distribution import frechet_distance

Samples = dict[int, np.ndarray]


def summary(files: Mapping[Row, Sequence[Path]], judge: Judge) -> dict[str, Any]:
    """Return a line for each row that has samples, and one for each comparison that the bars ask for."""
    errors: dict[Row, Samples] = {}
    lines = []
    for row, pieces in files.items():
        read = {int(piece.stem): dict(np.load(piece)) for piece in pieces}
        if not read:
            continue
        errors[row] = {first: piece["errors"] for first, piece in read.items() if row != FULL}
        lines.append(_line(row, read, judge))
    pairs = [(a, b) for a, b in comparisons(list(errors)) if a in errors and b in errors]
    return {"rows": lines, "differences": [found for a, b in pairs if (found := difference(a, b, errors))]}


def comparisons(rows: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Return what is compared with what: a step with the one before, a searched plan with uniform ones, sizes with the
    next smaller one, defects with what has none."""
    pairs = []
    for bits in BITS:
        steps = ladder(bits)
        mine = [row for row in rows if row.plan and row.bits == bits]
        pairs += list(zip(steps[1:], steps, strict=False))
        pairs += [(plan, uniform(bits, group)) for plan in mine for group in (128, 192, 384, None)]
        for quantizer in ("qdit", "qdit-gptq"):
            sizes = [uniform(bits, group, quantizer) for group in (*GROUPS, None)]
            pairs += list(zip(sizes[1:], sizes, strict=False))
            pairs += [(uniform(bits, g, quantizer, "clamped"), uniform(bits, g, quantizer)) for g in GROUPS]
        stale = [group for group in GROUPS if group % BLOCK]
        pairs += [(uniform(bits, g, "qdit-gptq", "stale"), uniform(bits, g, "qdit-gptq")) for g in stale]
    return pairs


def difference(row: Row, other: Row, errors: Mapping[Row, Samples]) -> dict[str, Any] | None:
    """Return how far a row's mean error is above another's, relative to the latter; None without common samples."""
    common = sorted(errors[row].keys() & errors[other].keys())
    if not common:
        return None
    mine, theirs = (np.concatenate([errors[r][first] for first in common]) for r in (row, other))
    low, high = paired_interval(mine, theirs)
    base = float(theirs.mean())
    found = {"change": float(mine.mean()) / base - 1, "low": low / base, "high": high / base}
    return {"bits": row.bits, "name": row.name, "against": other.name, "samples": len(mine)} | found


def _line(row: Row, read: Mapping[int, Mapping[str, np.ndarray]], judge: Judge) -> dict[str, Any]:
    features = torch.from_numpy(np.concatenate([piece["features"] for piece in read.values()]))
    line = {
        "bits": row.bits,
        "name": row.name,
        "first samples": sorted(read),
        "samples": len(features),
        "accuracy": float(np.concatenate([piece["right"] for piece in read.values()]).mean()),
        "fd": frechet_distance(features, judge.reference.features),
    }
    if row in (FULL,):
        return line
    errors = np.concatenate([read[first]["errors"] for first in sorted(read)])
    low, high = interval(errors)
    return line | {"error": float(errors.mean()), "low": low, "high": high, "noise": row == PRODUCTS}
