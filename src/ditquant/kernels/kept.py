"""What is made of a packed weight and kept beside it: decoded forms that are never saved and never out of date.

They belong to the storage of the codes and go with it. The tensors' addresses and version counters tell whether the
weight is still the one that they were made of; tensors made under inference mode count no versions, so nothing is kept
for those. Values written in place through `.data` are not counted by torch either, and go unseen.
"""

import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from ditquant.formats import PackedWeight

DECODED = ("tiles", "int8", "grouped")  # what the names of kinds that hold a byte a weight begin with
_Stamp = tuple[Any, ...]
_entries: dict[int, dict[int, tuple[_Stamp, dict[str, Any]]]] = {}  # by storage, then by offset in it


def keep(weight: PackedWeight, kind: str, make: Callable[[], Any]) -> Any:
    """Return what `make` makes of a weight, from an earlier call where nothing has changed."""
    stamp = _stamp(weight)
    if stamp is None:
        return make()
    of_storage = _of_storage(weight.codes)
    offset = weight.codes.storage_offset()
    if offset not in of_storage or of_storage[offset][0] != stamp:
        of_storage[offset] = (stamp, {})
    made = of_storage[offset][1]
    if kind not in made and weight.codes.is_cuda:
        if torch.cuda.is_current_stream_capturing():
            return make()  # its memory belongs to the graph
        made[kind] = _apart(make, weight.codes.device)
    elif kind not in made:
        made[kind] = make()
    return made[kind]


def _apart(make: Callable[[], Any], device: torch.device) -> Any:
    """Make it in another thread: what this one allocates may be in the pool of a CUDA graph, which uses it again."""

    @torch.no_grad()
    def work() -> Any:
        with torch.cuda.device(device):
            made = make()
            torch.cuda.current_stream().synchronize()
        return made

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(work).result()


def forget_decoded(codes: Tensor) -> None:
    """Drop the decoded forms of a weight; its small table of INT8 values stays."""
    _, made = _of_storage(codes).get(codes.storage_offset(), (None, {}))
    for kind in [kind for kind in made if kind.startswith(DECODED)]:
        made.pop(kind)


def kept_bytes() -> int:
    """Bytes of all that is kept."""
    made = (value for entry in _entries.values() for _, values in entry.values() for value in values.values())
    return sum(t.numel() * t.element_size() for value in made for t in value if isinstance(t, Tensor))


def _of_storage(codes: Tensor) -> dict[int, tuple[_Stamp, dict[str, Any]]]:
    storage = codes.untyped_storage()
    key = id(storage)
    if key not in _entries:
        _entries[key] = {}
        weakref.finalize(storage, _entries.pop, key, None)
    return _entries[key]


def _stamp(weight: PackedWeight) -> _Stamp | None:
    tensors = (weight.codes, *weight.params.values())
    if any(t.is_inference() for t in tensors):
        return None
    return (weight.shape, weight.spec, *((t.data_ptr(), t._version) for t in tensors))
