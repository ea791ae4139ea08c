"""The family of every other model: its repeated blocks are found, the roles in them are guessed from names."""

from collections import Counter
from collections.abc import Iterator

from torch import nn

from ditquant.models.base import FAMILIES, BlockList, ModelFamily

_BLOCK_LINEARS = 4  # two for attention and two for a feed-forward: a lone embedder has fewer


def family_of(model: nn.Module) -> ModelFamily:
    """Return the family that names the model's class (or a base class of it), else a generic one."""
    for base in type(model).__mro__:
        for family in FAMILIES.values():
            if base.__name__ in family.transformers:
                return family
    return generic(model)


def generic(model: nn.Module) -> ModelFamily:
    """Make a family for one model; without repeated blocks it has no block lists."""
    lists = list(_repeated(model, ""))
    most = max((count for _, count in lists), default=0)
    # a list of embedders (a projection for each text layer, say) is repeated too, but with one linear layer each
    blocks = tuple(BlockList(path) for path, count in lists if count >= min(most, 2))
    return ModelFamily("generic", (type(model).__name__,), blocks, {})


def _repeated(module: nn.Module, path: str) -> Iterator[tuple[str, int]]:
    """Yield path and linear layers a block of the outermost lists with two or more blocks of one class.

    A ModuleList with a single block counts too if that is no small one: small configurations have such lists.
    """
    if isinstance(module, nn.ModuleList | nn.Sequential):
        counts = [(type(child), _inner_linears(child)) for child in module.children()]
        kinds = Counter(kind for kind, count in counts if count)
        alone = type(module) is nn.ModuleList and len(counts) == 1 and counts[0][1] >= _BLOCK_LINEARS
        if kinds and (max(kinds.values()) > 1 or alone):
            yield path, max(count for _, count in counts)
            return
    for name, child in module.named_children():
        yield from _repeated(child, f"{path}.{name}" if path else name)


def _inner_linears(module: nn.Module) -> int:
    """Count the linear layers strictly inside a module."""
    return sum(isinstance(m, nn.Linear) for m in module.modules() if m is not module)
