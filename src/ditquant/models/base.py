"""A model family: where the transformer blocks of a class are, and what the linear layers inside them do."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from ditquant.models.roles import ROLES, guess_role
from ditquant.registry import Registry, unknown


@dataclass(frozen=True)
class BlockList:
    """A list of transformer blocks at a dotted `path`.

    `outputs` names, in order, the arguments of a block that the previous one returns; all others are the same for
    every block of the list, so that the list can be run block by block. Empty where that does not hold.
    """

    path: str
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelFamily:
    """Model classes with the same blocks.

    `transformers` are class names; a subclass belongs to the family too. `roles` maps a role to a regular expression
    that matches the whole name of a linear layer within its block; a name that none matches is guessed.
    """

    name: str
    transformers: tuple[str, ...]
    blocks: tuple[BlockList, ...]
    roles: Mapping[str, str]

    def __post_init__(self):
        for role in self.roles:
            if role not in ROLES:
                raise unknown(f"role of model family {self.name!r}", role, ROLES)

    def role(self, name: str, in_features: int, out_features: int) -> str:
        """Return the role of a linear layer by its name within its block."""
        for role, pattern in self.roles.items():
            if re.fullmatch(pattern, name):
                return role
        return guess_role(name, in_features, out_features)


FAMILIES: Registry[ModelFamily] = Registry("model family")


def register(family: ModelFamily) -> ModelFamily:
    """Enter a family into FAMILIES."""
    FAMILIES[family.name] = family
    return family


def attention(path: str, stream: str = "attn") -> dict[str, str]:
    """Roles of a diffusers attention layer at `path` within the block."""
    return {f"{stream}_{p}": rf"{path}\.to_{p}" for p in "qkv"} | {f"{stream}_out": rf"{path}\.to_out\.0"}


def added(path: str) -> dict[str, str]:
    """Roles of the second stream's projections in a diffusers attention layer."""
    return {f"add_{p}": rf"{path}\.add_{p}_proj" for p in "qkv"} | {"add_out": rf"{path}\.to_add_out"}


def feed_forward(path: str, role: str = "ffn") -> dict[str, str]:
    """Roles of a diffusers FeedForward at `path` within the block."""
    return {f"{role}_up": rf"{path}\.net\.0\.proj", f"{role}_down": rf"{path}\.net\.2"}


def blocks_in(blocks: nn.Module) -> list[tuple[str, nn.Module]]:
    """Return the blocks of a list with their names in it.

    Every module of a ModuleList is a block; of a Sequential, which may begin with an embedding and end with a head,
    those whose class occurs more than once.
    """
    children = [(name, child) for name, child in blocks.named_children() if not isinstance(child, nn.Linear)]
    if isinstance(blocks, nn.Sequential):
        kinds = [type(child) for _, child in children]
        return [(name, child) for name, child in children if kinds.count(type(child)) > 1]
    return children
