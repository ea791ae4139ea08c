"""Groups and ranks for every width: a smaller group size where a recipe's does not divide a layer's width, and no rank
beyond that of its weight."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ditquant.errors import DitQuantError
from ditquant.models import Layer
from ditquant.rule import Rule
from ditquant.specs import check_divides

LEAST = 16  # channels that are worth a scale of their own

Pairs = Sequence[tuple[Layer, Rule]]


def fit_to(layer: Layer, rule: Rule) -> Rule:
    """Return the rule as it fits a layer: groups that divide its width, and a rank that it can have."""
    return replace(fit_groups(rule, layer.in_features), rank=min(rule.rank, layer.in_features, layer.out_features))


def fit_groups(rule: Rule, in_features: int) -> Rule:
    """Return a rule whose groups divide a width: as they are, or the largest below, or full rows if that is small."""
    weight, activation = rule.weight, rule.activation
    if weight is not None and weight.group_size is not None:
        weight = replace(weight, group_size=fitting(weight.group_size, in_features))
    if activation is not None and activation.group_size is not None:
        group_size = fitting(activation.group_size, in_features)
        granularity = "token" if group_size is None else "group"
        activation = replace(activation, granularity=granularity, group_size=group_size)
    return replace(rule, weight=weight, activation=activation)


def fitting(group_size: int, in_features: int) -> int | None:
    """Return the largest divisor of a width up to a group size; None if it is below 16, or half of a small one."""
    if in_features % group_size == 0:
        return group_size
    best = max(d for d in range(1, min(group_size, in_features) + 1) if in_features % d == 0)
    return best if best >= min(LEAST, group_size / 2, in_features) else None


def check_some_fit(matched: Pairs) -> None:
    """Refuse a group size, or a rank, that fits no layer that it is for: it is likely a slip.

    Raises:
        DitQuantError: names the first of the layers, and what it could have.
    """
    for size in {size for _, rule in matched for size in _sizes(rule)}:
        layers = [layer for layer, rule in matched if size in _sizes(rule)]
        if all(layer.in_features % size for layer in layers):
            check_divides(size, layers[0].in_features, layers[0].name)
    for rank in {rule.rank for _, rule in matched}:
        most = {layer.name: min(layer.in_features, layer.out_features) for layer, rule in matched if rule.rank == rank}
        if rank > max(most.values()):
            name = next(iter(most))
            raise DitQuantError(f"rank {rank} is too large for {name!r}. Choose at most {most[name]}.")


def say_fitted(wanted: Callable[[str, str], Rule | None], matched: Iterable[tuple[Layer, Rule]]) -> str:
    """Say which layers have other groups or ranks than `wanted(role, name)`, their recipe's rule; empty if none has."""
    found: Counter[str] = Counter()
    for layer, rule in matched:
        asked = wanted(layer.role, layer.name)
        if asked is not None and (lost := _sizes(asked) - _sizes(rule)):
            new, old = (", ".join(map(str, sorted(sizes))) for sizes in (_sizes(rule) - _sizes(asked), lost))
            what = f"groups of {new}" if new else "full rows"
            found[f"{what} in place of {old} for {layer.in_features} channels"] += 1
        if asked is not None and rule.rank < asked.rank:
            found[f"rank {rule.rank} in place of {asked.rank} for {layer.in_features} -> {layer.out_features}"] += 1
    return "; ".join(f"{what} ({count} layers)" for what, count in found.items())


def _sizes(rule: Rule) -> set[int]:
    return {spec.group_size for spec in (rule.weight, rule.activation) if spec is not None and spec.group_size}
