"""Go or no-go: does every model meet the thresholds that were asked for, and those of its own recipe?"""

from collections.abc import Sequence

from ditquant.errors import DitQuantError
from ditquant.evaluation.metrics.distributions import FID_SAMPLES, KID_SAMPLES, check_real
from ditquant.evaluation.pairs import figure
from ditquant.evaluation.results import ModelResult, Results
from ditquant.threshold import Threshold, overridden, read_thresholds

# how a note begins that says why a metric was left out
_NOTED = {
    "lpips": "LPIPS",
    "clip_score": "CLIPScore",
    "caption_accuracy": "caption accuracy",
    **{metric: metric[:3].upper() for metric in ("fid", "kid", "fid_real", "kid_real")},
}
_ONLY = {
    "caption_accuracy": "only scenes of the shipped models have it",
    "flicker": "only videos have it",
    "warp_error": "only videos have it",
    "fid_real": "there are no real pictures, see --real",
    "kid_real": "there are no real pictures, see --real",
}


def check_samples(thresholds: Sequence[Threshold], prompts: int, real: int | None = None) -> None:
    """Refuse thresholds that so few prompts, or so few `real` pictures, cannot decide, before anything is painted."""
    for metric in (threshold.metric for threshold in thresholds):
        needed = {"fid": FID_SAMPLES, "kid": KID_SAMPLES}.get(metric.removesuffix("_real"), 1)
        if prompts < needed:
            raise DitQuantError(f"{metric} needs at least {needed} prompts, got {prompts}. Give more, or leave it out.")
    if real is not None:
        check_real((threshold.metric for threshold in thresholds), real)


def verdict(results: Results, asked: Sequence[Threshold] = ()) -> tuple[bool, list[str]]:
    """Return whether every model but the reference meets its thresholds, and a line for each model that has any.

    Those of a model's recipe count where none is `asked` for the same metric.
    What could not be measured, such as caption accuracy on prompts that are no scenes, is not met.
    """
    lines, go = [], True
    for model in results.models[1:]:
        own = read_thresholds(model.facts.thresholds, f"'thresholds' of {model.name}")
        thresholds = overridden(own, asked)
        if not thresholds:
            continue
        missed = _missed(model, thresholds, asked, results.notes)
        go = go and not missed
        lines.append(f"{model.name}: {'no-go, ' + ', '.join(missed) if missed else 'go'}")
    return go, lines


def _missed(
    model: ModelResult, thresholds: Sequence[Threshold], asked: Sequence[Threshold], notes: Sequence[str]
) -> list[str]:
    values = {name: figure(name, found) for name, found in model.values.items()} | model.scores
    missed = []
    for threshold in thresholds:
        source = "" if threshold in asked else " (of its recipe)"
        if threshold.metric not in values:
            missed.append(f"{threshold.metric} was not measured{source}{_why(threshold.metric, notes)}")
            continue
        value = values[threshold.metric]
        if not threshold.met(value):
            missed.append(f"{threshold.metric} {value:.4g} is not {threshold.sign} {threshold.bound:g}{source}")
    return missed


def _why(metric: str, notes: Sequence[str]) -> str:
    for note in notes:
        names, _, reason = note.partition(" left out: ")
        if reason and {metric, _NOTED.get(metric)} & set(names.split(", ")):
            return f" ({reason.rstrip('.')})"
    return f" ({_ONLY[metric]})" if metric in _ONLY else ""
