"""How recorded calls, carried results and quantized layers are written to files and read again, bit for bit.

Files that cannot be read back as they were written raise Damaged.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ditquant.atomic import atomic_file
from ditquant.calibration.arguments import from_plain, to_plain
from ditquant.calibration.record import ListRecord, Recording
from ditquant.calibration.store import Ref
from ditquant.calibration.walk import Walk
from ditquant.errors import DitQuantError, first_line
from ditquant.nn import QuantLinear
from ditquant.on_disk import Place, tensor_places
from ditquant.specs import LayerPlan

_CALLS, _PLANS, _LAYERS, _CARRIED = "calls.json", "plans.json", "layers.safetensors", "carried"


class Damaged(Exception):
    """Files of finished work that a full disk or a lost machine left in pieces."""


@contextmanager
def reading() -> Iterator[None]:
    """Raise Damaged, whatever pieces of files make the libraries raise."""
    try:
        yield
    except (OSError, ValueError, TypeError, LookupError, RuntimeError, SafetensorError, DitQuantError) as error:
        raise Damaged(first_line(error)) from error


def save_recording(folder: Path, recording: Recording) -> None:
    """Write the recorded calls, and last the file that says that they are complete.

    Raises:
        NotPlain: an argument is an object that files cannot hold.
    """
    plain = [{call: to_plain(args) for call, args in one.calls.items()} for one in _all(recording)]
    folder.mkdir(exist_ok=True)
    for ref in set(recording.refs):
        save_file({"x": recording.store.get(ref)}, folder / f"{ref.key}.safetensors")
    with atomic_file(folder / _CALLS, overwrite=True) as file:
        file.write_text(json.dumps(plain))


def load_recording(folder: Path, recording: Recording) -> bool:
    """Fill a recording with the calls in a folder; False if they are not complete.

    Raises:
        Damaged: the recording is left without calls.
    """
    if not (folder / _CALLS).exists():
        return False
    held: dict[str, Ref] = {}
    used: list[Ref] = []

    def hold(value: Any) -> Any:
        if not isinstance(value, Ref):
            return value
        if value.key not in held:
            held[value.key] = recording.store.put(load_file(folder / f"{value.key}.safetensors")["x"])
        else:
            recording.store.again(held[value.key])
        used.append(held[value.key])
        return held[value.key]

    try:
        with reading():
            for one, calls in zip(_all(recording), json.loads((folder / _CALLS).read_text()), strict=True):
                one.calls = {int(call): tree_map(hold, from_plain(arguments)) for call, arguments in calls.items()}
    except Damaged:
        recording.store.drop(used)
        for one in _all(recording):
            one.calls = {}
        raise
    return True


def _all(recording: Recording) -> list[ListRecord]:
    return [*recording.lists, recording.whole]


def save_carried(folder: Path, walk: Walk) -> None:
    """Write what a walk carries, one file a call."""
    (folder / _CARRIED).mkdir()
    for call, values in walk.carried.items():
        tensors = {name: walk.store.get(ref) for name, ref in values.items() if ref is not None}
        save_file(tensors, folder / _CARRIED / f"{call}.safetensors", {"names": json.dumps(list(values))})


def load_carried(folder: Path, walk: Walk) -> None:
    """Give a walk what `save_carried` wrote.

    Raises:
        Damaged: nothing is there, or in pieces; the walk is left without anything carried.
    """
    found: dict[int, dict[str, Ref | None]] = {}
    used: list[Ref] = []
    try:
        with reading():
            files = sorted((folder / _CARRIED).glob("*.safetensors"))
            if not files:
                raise FileNotFoundError("it holds no calls")
            for path in files:
                with safe_open(path, "pt") as file:
                    held: dict[str, Ref] = {}
                    for name in file.keys():  # noqa: SIM118
                        held[name] = walk.store.put(file.get_tensor(name), share=False)
                        used.append(held[name])
                    found[int(path.stem)] = {name: held.get(name) for name in json.loads(file.metadata()["names"])}
    except Damaged:
        walk.store.drop(used)
        raise
    walk.carried |= found


def save_layers(folder: Path, layers: Mapping[str, QuantLinear]) -> None:
    """Write plans and state of quantized layers; the bias stays with the model."""
    plans = {name: layer.plan.to_dict() for name, layer in layers.items()}
    tensors = {f"{n}/{key}": t.contiguous() for n, layer in layers.items() for key, t in _state(layer).items()}
    save_file(tensors, folder / _LAYERS)
    (folder / _PLANS).write_text(json.dumps(plans))


def layer_places(work: Path, part: str = "") -> dict[str, Place]:
    """Return where the tensors of all quantized layers of a part lie in a work folder, by their names in the model."""
    found = {}
    for folder in work.glob(f"{part}.*" if part else "*"):
        if (folder / _LAYERS).exists():
            for key, place in tensor_places(folder).items():
                layer, _, own = key.partition("/")
                found[f"{layer}.{own}"] = place
    return found


def load_layers(folder: Path, linears: Mapping[str, nn.Linear]) -> dict[str, QuantLinear]:
    """Rebuild the quantized layers in a folder from the layers that they replace.

    Raises:
        Damaged: any of them is missing, or has files in pieces.
    """
    with reading():
        plans, tensors = json.loads((folder / _PLANS).read_text()), load_file(folder / _LAYERS)
        return {name: _load_layer(old, plans[name], tensors, name) for name, old in linears.items()}


def _load_layer(old: nn.Linear, plan: dict[str, Any], tensors: Mapping[str, Tensor], name: str) -> QuantLinear:
    device, dtype = old.weight.device, old.weight.dtype
    has_bias = old.bias is not None
    new = QuantLinear(old.in_features, old.out_features, has_bias, LayerPlan.from_dict(plan), device, dtype)
    with torch.no_grad():
        for key, value in _state(new).items():
            value.copy_(tensors[f"{name}/{key}"])
    new.bias = old.bias
    return new.train(old.training)


def _state(layer: QuantLinear) -> dict[str, Tensor]:
    return {key: value for key, value in layer.state_dict().items() if key != "bias"}
