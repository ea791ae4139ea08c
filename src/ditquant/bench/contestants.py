"""Who takes part in a measurement: the model in full precision, quantized by a recipe, or by another package."""

import copy
import gc
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ditquant.bench.memory import growth, stored_bytes
from ditquant.bench.subject import Subject
from ditquant.engine import quantize
from ditquant.errors import first_line
from ditquant.kernels import kept_bytes
from ditquant.nn import QuantLinear, dequantize_model, set_mode


@dataclass(frozen=True)
class Contestant:
    """`run` computes the call once; bytes are those held between calls, of the file, and of a call above the held.

    `model` is there where its layers are torch's or ours, so that they can be looked into.
    """

    name: str
    run: Callable[[], object]
    output: Tensor
    held_bytes: int
    file_bytes: int | None
    growth_bytes: int | None
    model: nn.Module | None = None


def dense(subject: Subject) -> Contestant:
    """Make the contestant of full precision, decoded if the model is quantized."""
    model = subject.model
    if is_quantized(model):
        model = dequantize_model(copy.deepcopy(model))
    name = str(next(model.parameters()).dtype).removeprefix("torch.")
    return of_model(name, model, subject, saved_bytes(model))


def quantized(subject: Subject, recipe: str | None, modes: tuple[str, ...]) -> Iterator[Contestant]:
    """Make one contestant a mode, with a recipe or, without one, of a model that is quantized."""
    made = copy.deepcopy(subject.model)
    if recipe is not None:
        quantize(made, recipe, forward=subject.call)
    file_bytes = saved_bytes(made)
    for mode in modes:
        model = copy.deepcopy(made)
        set_mode(model, mode)
        yield of_model(f"{recipe or 'as stored'}, {mode}", model, subject, file_bytes)


def compiled(contestants: Sequence[Contestant], subject: Subject, left_out: dict[str, str]) -> Iterator[Contestant]:
    """Make contestants of our models compiled by torch; `left_out` takes the reasons of those that cannot be."""
    for one in contestants:
        name = f"{one.name}, compiled"
        try:
            yield replace(of_model(name, torch.compile(one.model), subject, one.file_bytes, one.held_bytes), model=None)
        except Exception as error:  # a missing compiler, a model that it does not take
            left_out[name] = f"{type(error).__name__}: {first_line(error)}"


def of_model(
    name: str, model: nn.Module, subject: Subject, file_bytes: int | None, held: int | None = None
) -> Contestant:
    """Make a contestant of a model: its output, and the peak of a second call, when all that is kept is there.

    `held` are the bytes of a model of another package, which cannot be counted here.
    """
    before = kept_bytes()
    output = subject.call(model)
    held_bytes = held or stored_bytes(model) + kept_bytes() - before
    grown = growth(lambda: subject.call(model), subject.device)
    return Contestant(name, lambda: subject.call(model), output, held_bytes, file_bytes, grown, None if held else model)


def is_quantized(model: nn.Module) -> bool:
    """Say whether any layer is a quantized one of ours."""
    return any(isinstance(module, QuantLinear) for module in model.modules())


def saved_bytes(model: nn.Module) -> int:
    """Bytes of the files that `save_pretrained` writes."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return sum(file.stat().st_size for file in Path(folder).iterdir())


def pickled_bytes(model: nn.Module) -> int:
    """Bytes of a state dict as torch saves it, for models of other packages."""
    with tempfile.TemporaryDirectory() as folder:
        torch.save(model.state_dict(), Path(folder) / "state.pt")
        gc.collect()
        return (Path(folder) / "state.pt").stat().st_size
