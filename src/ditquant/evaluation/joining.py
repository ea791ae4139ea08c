"""Which reports can stand in one table: those of the same prompts, seeds, settings, dtype and reference."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ditquant.errors import DitQuantError

if TYPE_CHECKING:
    from ditquant.evaluation.results import Results


def check_runs(one: Results, others: Sequence[Results]) -> None:
    """Refuse reports that were painted in another way, or that share a model; their references are not looked at."""
    taken = {model.name for model in one.models}
    for other in others:
        _check_prompts(one, other)
        settings = [{k: v for k, v in r.sampling.items() if k != "batch_size"} for r in (one, other)]
        if settings[0] != settings[1]:
            raise DitQuantError(f"the reports have unequal settings: {settings[0]} and {settings[1]}.")
        dtypes = one.conditions.dtype, other.conditions.dtype
        if None not in dtypes and dtypes[0] != dtypes[1]:
            raise DitQuantError(
                f"the reports have unequal dtypes: {dtypes[0]} and {dtypes[1]}. Paint both with the same --dtype."
            )
        for model in other.models[1:]:
            if model.name in taken:
                raise DitQuantError(f"{model.name!r} is in both reports. Leave one of them out.")
            taken.add(model.name)


def check_references(one: Results, others: Sequence[Results]) -> None:
    """Refuse reports whose reference has other weights, or another name where the weights are not known."""
    for other in others:
        first, second = one.models[0].name, other.models[0].name
        digests = one.conditions.reference_digest, other.conditions.reference_digest
        if None in digests and first != second:
            raise DitQuantError(f"the reports compare with different references: {first!r} and {second!r}.")
        if None not in digests and digests[0] != digests[1]:
            raise DitQuantError(
                "the reports compare with different references: the weights of "
                f"{first!r} have the digest {digests[0]}, those of {second!r} {digests[1]}. Paint both with the same."
            )


def check_counts(one: Results, others: Sequence[Results]) -> None:
    """Refuse figures that were taken on unequal numbers of prompts, as step SQNR may be."""
    known: dict[str, int] = {}
    for model in (model for report in (one, *others) for model in report.models):
        for metric, values in model.values.items():
            if known.setdefault(metric, len(values)) != len(values):
                raise DitQuantError(
                    f"the reports have {metric} of unequal numbers of prompts: {known[metric]} and {len(values)}. "
                    "Measure the same number in both (step_prompts)."
                )


def unlike(one: Results, others: Sequence[Results]) -> list[str]:
    """Return a line for what differs, or is not known to be equal, and does not keep reports apart."""
    notes = []
    for other in others:
        names, here, there = ", ".join(m.name for m in other.models[1:]), one.conditions, other.conditions
        if not names:
            continue
        if None not in (here.device, there.device) and here.device != there.device:
            notes.append(f"{names} ran on {there.device}, the other models on {here.device}: do not compare seconds.")
        if None in (there.dtype, there.reference_digest):
            notes.append(
                f"the report of {names} is of an older version and does not say its dtype and the weights of its "
                "reference: see to it that they are the same."
            )
    return notes


def _check_prompts(one: Results, other: Results) -> None:
    if one.prompts != other.prompts:
        differ = [i for i, (a, b) in enumerate(zip(one.prompts, other.prompts, strict=False)) if a != b]
        where = f"the first difference is prompt {differ[0]}" if differ else "one has more"
        raise DitQuantError(
            f"the reports have unequal sets of prompts ({len(one.prompts)} and {len(other.prompts)}; {where}). "
            "Paint the same prompts in both."
        )
    if one.seeds != other.seeds:
        raise DitQuantError("the reports have unequal seeds. Paint the same prompts with the same --seed in both.")
