"""Models whose blocks lie in safetensors files, and are in memory only while they are held.

What is outside of a model's lists of modules is in memory. A module of such a list is read when it is called or held,
and let go of after it; its weights are cast to float32, in which everything is calibrated.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from weakref import WeakKeyDictionary

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ditquant.errors import damaged
from ditquant.stored import tensor_files


@dataclass(frozen=True)
class Place:
    """Where a tensor lies."""

    file: Path
    key: str
    shape: tuple[int, ...]

    def read(self) -> Tensor:
        """Return the tensor as it is stored, in memory of its own."""
        with safe_open(self.file, "pt") as tensors:
            return tensors.get_tensor(self.key).clone()


class _Owner:
    """The parameters that a module itself has, and how often they are held at the moment."""

    def __init__(self, module: nn.Module, places: dict[str, Place]):
        self.module, self.places, self.held = module, places, 0
        self.empty = {name: module._parameters[name] for name in places}

    @contextmanager
    def hold(self) -> Iterator[None]:
        self.held += 1
        try:
            if self.held == 1:
                for name, place in self.places.items():
                    self.module._parameters[name] = nn.Parameter(place.read().float(), requires_grad=False)
            yield
        finally:
            self.held -= 1
            if not self.held:
                self.module._parameters.update(self.empty)


_OWNERS: WeakKeyDictionary[nn.Module, _Owner] = WeakKeyDictionary()


@contextmanager
def held(module: nn.Module) -> Iterator[None]:
    """Have the parameters of a module and of those inside it in memory; for a module that is there, do nothing."""
    with ExitStack() as stack:
        for owner in [_OWNERS[inner] for inner in module.modules() if inner in _OWNERS]:
            stack.enter_context(owner.hold())
        yield


def lies_on_disk(module: nn.Module) -> bool:
    """Say whether any of its parameters are only in memory while they are held."""
    return any(inner in _OWNERS for inner in module.modules())


def values(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a model's state by name; what lies on disk is read for the moment."""
    for name, tensor in model.state_dict().items():
        path, _, own = name.rpartition(".")
        owner = _OWNERS.get(model.get_submodule(path))
        yield name, tensor if owner is None or own not in owner.places else owner.places[own].read().float()


def tensor_places(folder: Path) -> dict[str, Place]:
    """Return where every tensor of a component lies.

    Raises:
        DitQuantError: a file is not safetensors, or is cut off.
    """
    found: dict[str, Place] = {}
    for file in tensor_files(folder):
        try:
            with safe_open(file, "pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118
                    found[key] = Place(file, key, tuple(tensors.get_slice(key).get_shape()))
        except (OSError, SafetensorError) as error:
            raise damaged(f"cannot read {file}: {error}") from None
    return found


def leave_on_disk(model: nn.Module, folder: Path) -> nn.Module:
    """Fill a model without values (parameters on the meta device, buffers not) from a folder, but for its blocks.

    Raises:
        DitQuantError: a tensor is missing, or has another shape.
    """
    places, names = tensor_places(folder), _names(model)
    blocks = list(listed(model))
    inside = {module for block in blocks for module in block.modules()}
    for module in model.modules():
        found = {name: _place(places, names[tensor], tensor) for name, tensor in _own(module)}
        wanted = {name: place for name, place in found.items() if place is not None}
        if module in inside:
            kept = {name: place for name, place in wanted.items() if name in module._parameters}
            if kept:
                _OWNERS[module] = _Owner(module, kept)
        for name, place in wanted.items():
            if name in module._buffers:
                module._buffers[name] = place.read()
            elif module not in inside:
                module._parameters[name] = nn.Parameter(place.read().float(), requires_grad=False)
    for block in blocks:
        _hold_in_calls(block)
    return model.eval()


def listed(module: nn.Module) -> Iterator[nn.Module]:
    """Yield the modules of the outermost lists, but for linear layers, which must not have hooks."""
    for child in module.children():
        if isinstance(child, nn.ModuleList):
            yield from (block for block in child.children() if not isinstance(block, nn.Linear))
        else:
            yield from listed(child)


def _own(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return a module's own parameters, and the buffers that are stored."""
    buffers = [(n, b) for n, b in module._buffers.items() if n not in module._non_persistent_buffers_set]
    return [(n, t) for n, t in chain(module._parameters.items(), buffers) if t is not None]


def _names(model: nn.Module) -> dict[Tensor, list[str]]:
    """Return every name of a tensor: of those that are tied, one is stored."""
    names: dict[Tensor, list[str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for name, tensor in _own(module):
            names.setdefault(tensor, []).append(f"{prefix}.{name}" if prefix else name)
    return names


def _place(places: dict[str, Place], names: list[str], tensor: Tensor) -> Place | None:
    place = next((places[name] for name in names if name in places), None)
    if place is None and tensor.is_meta:
        raise damaged(f"tensor {names[0]!r} is missing")
    if place is not None and place.shape != tuple(tensor.shape):
        raise damaged(f"tensor {names[0]!r} has shape {place.shape}, expected {tuple(tensor.shape)}")
    return place


def _hold_in_calls(block: nn.Module) -> None:
    calls: list[ExitStack] = []

    def enter(module: nn.Module, *_: object) -> None:
        stack = ExitStack()
        calls.append(stack)
        stack.enter_context(held(module))

    def leave(*_: object) -> None:
        calls.pop().close()

    block.register_forward_pre_hook(enter)
    block.register_forward_hook(leave, always_call=True)
