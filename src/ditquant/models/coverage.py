"""Which layers of a model can be quantized, and which stay as they are and why."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from ditquant.errors import DitQuantError
from ditquant.models.base import ModelFamily, blocks_in
from ditquant.models.generic import family_of
from ditquant.models.roles import guess_role

OUTSIDE = "outside the transformer blocks: embedding or final projection"
_END = re.compile(r"(^|[._])(proj_in|proj_out|head|final|norm_out)([._]|$)")


@dataclass(frozen=True)
class Layer:
    """A linear layer that can be quantized; `aliases` are further names of the same module object."""

    name: str
    role: str
    in_features: int
    out_features: int
    aliases: tuple[str, ...] = ()

    @property
    def parameters(self) -> int:
        """Number of weights, without the bias."""
        return self.in_features * self.out_features


@dataclass(frozen=True)
class Skipped:
    """A module with weights of its own that stays as it is."""

    name: str
    kind: str
    reason: str
    parameters: int


@dataclass(frozen=True)
class Coverage:
    """What was found in a model: `blocks` are the paths of the block lists, empty if there are none."""

    family: str
    blocks: tuple[str, ...]
    layers: tuple[Layer, ...]
    skipped: tuple[Skipped, ...]


def find_linears(model: nn.Module, family: ModelFamily | None = None) -> Coverage:
    """List the linear layers inside the transformer blocks with their roles, and all other weights with a reason.

    Reads no values: modules may be on the meta device. A model without repeated blocks offers all its linear layers
    but those whose names tell of an embedding or a final projection. A module that is reachable by several names is
    listed once.

    Raises:
        DitQuantError: the model carries LoRA adapters, or has no block list where its family expects one.
    """
    family = family_of(model) if family is None else family
    inside = _inside_blocks(model, family)
    layers: list[Layer] = []
    skipped: list[Skipped] = []
    for module, (name, *aliases) in _names(model).items():
        base, lora, _ = name.partition(".lora_")
        if lora:
            raise DitQuantError(
                f"{base!r} carries a LoRA adapter. Fuse or unload LoRAs, quantize, then load them again."
            )
        count = sum(p.numel() for p in module._parameters.values() if p is not None and p.ndim >= 2)
        if not count and not isinstance(module, nn.Linear):
            continue
        reason = _why_not(module) or ("" if module in inside else OUTSIDE)
        if isinstance(module, nn.Linear) and not reason:
            role = family.role(inside[module], module.in_features, module.out_features)
            layers.append(Layer(name, role, module.in_features, module.out_features, tuple(aliases)))
        else:
            skipped.append(Skipped(name, type(module).__name__, reason, count))
    return Coverage(family.name, tuple(b.path for b in family.blocks), tuple(layers), tuple(skipped))


def walk_blocks(model: nn.Module, family: ModelFamily) -> Iterator[tuple[str, nn.Module]]:
    """Yield name and module of every transformer block, list after list.

    Raises:
        DitQuantError: the model has no block list where its family expects one.
    """
    for blocks in family.blocks:
        try:
            found = model.get_submodule(blocks.path)
        except AttributeError:
            raise DitQuantError(
                f"{type(model).__name__} has no {blocks.path!r}, where model family {family.name!r} keeps its blocks. "
                "Use another version of diffusers."
            ) from None
        for name, block in blocks_in(found):
            yield f"{blocks.path}.{name}" if blocks.path else name, block


def _names(model: nn.Module) -> dict[nn.Module, list[str]]:
    """Map every module to all the names that reach it."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return names


def _inside_blocks(model: nn.Module, family: ModelFamily) -> dict[nn.Module, str]:
    """Map the modules that may be quantized to their names within their blocks."""
    if family.blocks:
        return {m: within for _, block in walk_blocks(model, family) for within, m in block.named_modules()}
    return {m: name for name, m in model.named_modules() if name and not _is_end(name)}


def _is_end(name: str) -> bool:
    """Say whether a name tells of an embedding or a final projection."""
    return guess_role(name, 1, 1) == "embedding" or _END.search(name) is not None


def _why_not(module: nn.Module) -> str:
    """Say why a module is not a plain linear layer; empty if it is one."""
    if not isinstance(module, nn.Linear):
        return "not a linear layer"
    if isinstance(module, NonDynamicallyQuantizableLinear):
        return "its parent reads the weight without calling the layer"
    if type(module).forward is not nn.Linear.forward:
        return "its class computes something else than nn.Linear"
    weight: Tensor | None = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed, not stored"
    if not weight.is_floating_point():
        return "its weight is not floating point"
    if weight.numel() == 0:
        return "it is empty"
    if set(module._parameters) - {"weight", "bias"} or module._buffers or module._modules:
        return "it holds more than a weight and a bias"
    return "" if not (module._forward_hooks or module._forward_pre_hooks) else "it has hooks, which would be lost"
