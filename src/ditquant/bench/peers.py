"""Other packages on the same model: taking part where they are installed, imported nowhere else."""

import copy
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import nn

from ditquant.bench.contestants import Contestant, of_model, pickled_bytes
from ditquant.bench.subject import Subject
from ditquant.errors import first_line


@dataclass(frozen=True)
class Peer:
    """A package by the name that it is imported by, and how it quantizes a model in place."""

    package: str
    quantize: Callable[[nn.Module], None]
    compiled: bool = False

    def missing(self) -> str | None:
        """Say what is not installed; None if all is there."""
        try:
            return None if find_spec(self.package) else f"{self.package} is not installed"
        except ModuleNotFoundError:
            return f"{self.package} is not installed"


def _torchao(model: nn.Module) -> None:
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantize_(model, Int8DynamicActivationInt8WeightConfig())


def _quanto(model: nn.Module) -> None:
    from optimum.quanto import freeze, qint8, quantize

    quantize(model, weights=qint8)
    freeze(model)


PEERS = {
    "torchao int8 dynamic": Peer("torchao", _torchao),
    "torchao int8 dynamic, compiled": Peer("torchao", _torchao, compiled=True),
    "optimum-quanto int8": Peer("optimum.quanto", _quanto),
}


def peers(subject: Subject, left_out: dict[str, str]) -> Iterator[Contestant]:
    """Make the contestants of all packages that are installed and work here; `left_out` takes the others' reasons."""
    for name, peer in PEERS.items():
        if (reason := peer.missing()) is not None:
            left_out[name] = reason
            continue
        try:
            yield _contestant(name, peer, subject)
        except Exception as error:  # whatever another package raises is its result
            left_out[name] = f"{type(error).__name__}: {first_line(error)}"


def _contestant(name: str, peer: Peer, subject: Subject) -> Contestant:
    model = copy.deepcopy(subject.model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer.quantize(model)
        size = pickled_bytes(model)  # their tensors do not tell how large they are
        return of_model(name, torch.compile(model) if peer.compiled else model, subject, size, held=size)
