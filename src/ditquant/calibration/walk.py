"""Run the blocks of a recorded model one by one, each on what the blocks before it returned."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from inspect import BoundArguments, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only

from ditquant.calibration.arguments import Carried
from ditquant.calibration.record import ListRecord, Recording
from ditquant.calibration.store import Ref, TensorStore
from ditquant.errors import first_line
from ditquant.on_disk import held


@dataclass(frozen=True)
class Step:
    """One block on the way: its list, its place in it, its full name."""

    list: ListRecord
    position: int
    name: str
    block: nn.Module


class Walk:
    """The way through a recording; `carried` holds, for every call, what the last block that ran returned."""

    def __init__(self, recording: Recording):
        self.recording, self.store = recording, recording.store
        self.carried: dict[int, dict[str, Ref | None]] = {}

    def steps(self) -> Iterator[Step]:
        """Yield the blocks in order; what a block alone needed is freed after it."""
        for one in self.recording.lists:
            for position, (name, block) in enumerate(one.blocks):
                yield Step(one, position, name, block)
                if position == 0:
                    self._free(one, one.outputs)
            self._free(one, signature(one.blocks[0][1].forward).parameters)

    def run(self, step: Step, carry: bool) -> None:
        """Run a block on every recorded call; with `carry` its results become the arguments of the next."""
        with held(step.block):
            self._run(step, carry)

    def _run(self, step: Step, carry: bool) -> None:
        for call in step.list.calls:
            carried = self.carried.get(call, {})
            returned = _call(step, _arguments(step, call, carried), self.store)
            if carry:
                made = tree_map_only(Tensor, lambda t: self.store.put(t, share=False), step.list.name(returned))
                self.store.drop(ref for ref in carried.values() if ref is not None)
                self.carried[call] = made

    def _free(self, one: ListRecord, names: Iterable[str]) -> None:
        for arguments in one.calls.values():
            for name in names:
                self.store.drop(v for v in tree_leaves(arguments.pop(name, None)) if isinstance(v, Ref))


@torch.no_grad()
def problem_of(recording: Recording) -> str:
    """Say why a recorded model does not equal its blocks run one by one; empty if it does.

    One recorded call is walked with the blocks as they are and compared with what the model itself made of it.
    """
    if recording.problem or not all(one.calls for one in recording.lists):
        return recording.problem
    carried: dict[str, Any] = {}
    for one in recording.lists:
        for position, (name, block) in enumerate(one.blocks):
            step = Step(one, position, name, block)
            try:
                with held(block):
                    carried = one.name(_call(step, _arguments(step, one.probe, carried), recording.store))
            except (TypeError, ValueError, KeyError, AttributeError, RuntimeError) as error:
                return f"{name!r} cannot be run alone: {first_line(error)}"
        if not all(_close(carried[name], one.results[name]) for name in one.outputs):
            return f"the blocks of {one.path!r}, run one by one, return something else than in the model"
    return ""


def _arguments(step: Step, call: int, carried: dict[str, Any]) -> dict[str, Any]:
    recorded = step.list.calls[call]
    if step.position:
        return recorded | carried
    return {name: carried[name] if isinstance(value, Carried) else value for name, value in recorded.items()}


def _call(step: Step, arguments: dict[str, Any], store: TensorStore) -> Any:
    device = next((p.device for p in step.block.parameters()), torch.device("cpu"))
    loaded = tree_map(lambda v: store.get(v).to(device) if isinstance(v, Ref) else v, arguments)
    bound = BoundArguments(signature(step.list.blocks[0][1].forward), loaded)
    return step.block(*bound.args, **bound.kwargs)


def _close(one: Any, other: Any) -> bool:
    """Compare up to what another order of additions may change."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return one is None and other is None
    if one.shape != other.shape:
        return False
    tolerance = torch.finfo(other.dtype).eps ** 0.5 / 4
    one, other = one.detach().double().cpu(), other.double()
    return float((one - other).norm()) <= tolerance * float(other.norm())
