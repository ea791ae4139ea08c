"""Measure quantized models against full precision and against other packages, in one run on one machine."""

from ditquant.bench.breakdown import breakdown
from ditquant.bench.contestants import Contestant, dense, quantized
from ditquant.bench.loading import loading
from ditquant.bench.machine import machine
from ditquant.bench.measure import measure
from ditquant.bench.peers import PEERS
from ditquant.bench.subject import Subject, shape_subject
from ditquant.bench.timing import interleave, median_ms, ratio, sqnr_db

__all__ = [
    "PEERS",
    "Contestant",
    "Subject",
    "breakdown",
    "dense",
    "interleave",
    "loading",
    "machine",
    "measure",
    "median_ms",
    "quantized",
    "ratio",
    "shape_subject",
    "sqnr_db",
]
