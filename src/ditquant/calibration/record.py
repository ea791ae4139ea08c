"""Record what the first block of every list is called with, on calls spread over the whole trajectory."""

import inspect
import random
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ditquant import distributed
from ditquant.calibration.arguments import Carried
from ditquant.calibration.prompts import PromptRun
from ditquant.calibration.store import Ref, TensorStore
from ditquant.errors import DitQuantError
from ditquant.models import ModelFamily
from ditquant.models.base import blocks_in

MAX_CALLS = 16
WHOLE_CALLS = 16
_GOLDEN = (5**0.5 - 1) / 2


@dataclass
class ListRecord:
    """The recorded calls of one list of blocks: arguments of its first block by the number of the call."""

    path: str
    outputs: tuple[str, ...]
    blocks: list[tuple[str, nn.Module]]
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    runs: Counter[str] = field(default_factory=Counter)  # how often the model called each block
    results: dict[str, Any] = field(default_factory=dict)  # what the last block made of the call `probe`

    @property
    def probe(self) -> int:
        """The call whose results are kept, to check a walk."""
        return next(iter(self.calls))

    def bind(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Name the arguments of a call of a block."""
        return dict(inspect.signature(self.blocks[0][1].forward).bind(*args, **kwargs).arguments)

    def name(self, returned: Any) -> dict[str, Any]:
        """Name what a block returned; the lengths agree where the list can be walked."""
        values = returned if isinstance(returned, tuple | list) else (returned,)
        return dict(zip(self.outputs, values, strict=True))


@dataclass
class Recording:
    """The recorded calls of one model, list after list."""

    lists: list[ListRecord]
    store: TensorStore
    whole: ListRecord  # some calls of the model itself, if they are asked for
    problem: str = ""  # why its blocks cannot be run one by one
    seconds_per_call: float = 0.0

    @property
    def refs(self) -> list[Ref]:
        """All tensors of the arguments."""
        return [
            leaf for record in (*self.lists, self.whole) for leaf in tree_leaves(record.calls) if isinstance(leaf, Ref)
        ]


def check_max_calls(value: int) -> None:
    """Refuse a number of calls that cannot be recorded."""
    if type(value) is not int or value < 1:
        raise DitQuantError(f"max_calls {value!r} is not allowed. Choose a positive integer; {MAX_CALLS} is usual.")


def can_walk(family: ModelFamily) -> bool:
    """Say whether a family's blocks can be run one by one."""
    return bool(family.blocks) and all(blocks.outputs for blocks in family.blocks)


def empty_recording(model: nn.Module, family: ModelFamily, store: TensorStore) -> Recording:
    """Make the lists of a model without any calls."""
    lists = []
    for blocks in family.blocks:
        found = [(f"{blocks.path}.{n}", b) for n, b in blocks_in(model.get_submodule(blocks.path))]
        if found:
            lists.append(ListRecord(blocks.path, blocks.outputs, found))
    return Recording(lists, store, ListRecord("", (), [("", model)]))


@torch.no_grad()
def record(
    recordings: Mapping[str, Recording],
    run: Callable[[], object],
    max_calls: int = MAX_CALLS,
    seed: int = 0,
    whole: Collection[str] = (),
) -> None:
    """Call `run`, which runs the models, and fill their recordings with at most `max_calls` calls of each list.

    Of the models named in `whole` some calls of the model itself are recorded too.

    The calls are spread evenly, in an order that does not fall into step with guidance branches that take turns.
    """
    recorders: list[_Recorder] = []
    with ExitStack() as stack:
        for name, recording in recordings.items():
            if name in whole:
                recorder = _Recorder(recording, recording.whole, None, WHOLE_CALLS, seed)
                model = recording.whole.blocks[0][1]
                stack.callback(model.register_forward_pre_hook(recorder.enter, with_kwargs=True).remove)
                recorders.append(recorder)
            before = None
            for one in recording.lists:
                before = stack.enter_context(_watched(_Recorder(recording, one, before, max_calls, seed)))
                recorders.append(before)
        begin = time.perf_counter()
        if isinstance(run, PromptRun) and distributed.count() > 1:
            run_shared(run, recorders)
        else:
            run()
        seconds = time.perf_counter() - begin
    for recording in recordings.values():
        counts = {name: one.runs[name] for one in recording.lists for name, _ in one.blocks}
        most, least = max(counts, key=counts.__getitem__), min(counts, key=counts.__getitem__)
        recording.seconds_per_call = seconds / max(counts[most], 1)
        if counts[most] != counts[least] and not recording.problem:
            recording.problem = f"{least!r} was called {counts[least]} times, {most!r} {counts[most]} times"
        recording.problem = next(filter(None, distributed.gather(recording.problem)), "")
    for recorder in recorders:
        recorder.share()


class _Recorder:
    """Watches one list of blocks; `before` watches the list whose results may be this one's arguments."""

    def __init__(self, recording: Recording, one: ListRecord, before: "_Recorder | None", max_calls: int, seed: int):
        self.recording, self.list, self.before, self.max_calls = recording, one, before, max_calls
        self.results: dict[str, Any] = {}
        self._offset = random.Random(seed).random()
        self._call = -1

    @property
    def seen(self) -> int:
        """How many calls there were, up to the last one seen."""
        return self._call + 1

    def skip_to(self, call: int) -> None:
        """Go on at a call, as those before it are seen elsewhere."""
        self._call = call - 1

    def share(self) -> None:
        """Keep, of what all ranks have kept, what one rank would have kept."""
        if distributed.count() == 1:
            return
        store, one = self.recording.store, self.list
        own = {call: tree_map_only(Ref, store.get, arguments) for call, arguments in one.calls.items()}
        every = distributed.gather((own, one.results))
        found = {call: arguments for calls, _ in every for call, arguments in calls.items()}
        chosen = sorted(found, key=self._key)[: self.max_calls]
        for call in one.calls.keys() - set(chosen):
            self._forget(call)
        for call in set(chosen) - one.calls.keys():
            one.calls[call] = tree_map_only(Tensor, store.put, found[call])
        one.calls = {call: one.calls[call] for call in chosen}
        one.results = next((results for calls, results in every if calls and chosen[0] in calls), {})

    def enter(self, _block: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Keep a call's arguments if it is one of the chosen."""
        self._call += 1
        calls = self.list.calls
        if len(calls) == self.max_calls and self._key(self._call) > self._key(max(calls, key=self._key)):
            return
        if len(calls) == self.max_calls:
            self._forget(max(calls, key=self._key))
        arguments = self._mark_carried(self.list.bind(*args, **kwargs))
        calls[self._call] = tree_map_only(Tensor, self.recording.store.put, arguments)
        self.list.calls = {i: calls[i] for i in sorted(calls, key=self._key)}

    def leave(self, _block: nn.Module, _args: tuple, returned: Any) -> None:
        """Hold the last block's results for the next list, and for good if the call is the probe."""
        try:
            self.results = self.list.name(returned)
        except ValueError:
            self.recording.problem = f"a block of {self.list.path!r} returns more or less than {self.list.outputs}"
            return
        if self._call == self.list.probe:
            self.list.results = tree_map_only(Tensor, lambda t: t.detach().to("cpu", copy=True), self.results)

    def _mark_carried(self, arguments: dict[str, Any]) -> dict[str, Any]:
        made = {} if self.before is None or self.before._call != self._call else self.before.results
        same = {name for name in self.list.outputs if name in made and _equal(made[name], arguments.get(name))}
        return {name: Carried(name) if name in same else value for name, value in arguments.items()}

    def _forget(self, call: int) -> None:
        refs = tree_leaves(self.list.calls.pop(call))
        self.recording.store.drop(leaf for leaf in refs if isinstance(leaf, Ref))

    def _key(self, call: int) -> float:
        """The calls of smallest key are evenly spread, however many there are (three-distance theorem)."""
        return (call * _GOLDEN + self._offset) % 1.0


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    return (
        isinstance(one, Tensor) and isinstance(other, Tensor) and one.shape == other.shape and torch.equal(one, other)
    )


def run_shared(run: PromptRun, recorders: Sequence[_Recorder]) -> None:
    """Run the first prompt in every rank, which tells how many calls a prompt has, and the others in turns.

    Raises:
        DitQuantError: a prompt with another number of calls.
    """
    run([0])
    lengths = [recorder.seen for recorder in recorders]

    def begin(prompt: int) -> None:
        for recorder, length in zip(recorders, lengths, strict=True):
            recorder.skip_to(prompt * length)

    for prompt in distributed.mine(range(1, len(run))):
        run([prompt], begin)
        if [recorder.seen for recorder in recorders] != [(prompt + 1) * length for length in lengths]:
            raise DitQuantError(
                f"prompt {prompt} calls the model more or less often than the first. Start one process."
            )


@contextmanager
def _watched(recorder: _Recorder) -> Iterator[_Recorder]:
    first, last = recorder.list.blocks[0][1], recorder.list.blocks[-1][1]
    handles = [
        first.register_forward_pre_hook(recorder.enter, with_kwargs=True),
        last.register_forward_hook(recorder.leave),
    ]
    for name, block in recorder.list.blocks:
        handles.append(block.register_forward_pre_hook(lambda *_, name=name: recorder.list.runs.update([name])))
    try:
        yield recorder
    finally:
        for handle in handles:
            handle.remove()
