"""What the table of a comparison says about a model besides its pictures."""

from typing import Any

from ditquant import sources
from ditquant.evaluation import ModelFacts
from ditquant.integrations.diffusers import transformers_of
from ditquant.sizes import measure
from ditquant.specs import QuantPlan
from ditquant.stored import tensor_files
from ditquant.threshold import Threshold


def describe(name: str, pipeline: Any) -> ModelFacts:
    """Return recipe, plan, bits a weight all-in and the file size of a model's transformers."""
    source = sources.find(name)
    sizes = [measure(part) for part in transformers_of(pipeline).values()]
    configs = [getattr(part, "config", {}).get("quantization_config") for part in transformers_of(pipeline).values()]
    plans = [config.plan for config in configs if config is not None and getattr(config, "plan", None) is not None]
    weights = sum(size.weights for size in sizes)
    bits = (
        8 * sum(size.layer_bytes for size in sizes) / weights
        if weights
        else 8.0 * sources.stored_dtype(source).itemsize
    )
    return ModelFacts(
        recipe=plans[0].recipe if plans else None,
        plan_hash=plans[0].hash() if plans else None,
        bits_per_weight=bits,
        file_bytes=file_bytes(source),
        thresholds=tuple(map(str, plans[0].thresholds)) if plans else (),
    )


def stored_thresholds(source: sources.Source) -> tuple[Threshold, ...]:
    """Return the thresholds that a quantized model carries, before it is loaded."""
    for config in source.transformers().values():
        quantized = config.get("quantization_config")
        if isinstance(quantized, dict) and quantized.get("quant_method") == "ditquant" and "plan" in quantized:
            return QuantPlan.from_dict(quantized["plan"]).thresholds
    return ()


def file_bytes(source: sources.Source) -> int:
    """Return the size of the transformers' weight files."""
    folder = source.local()
    return sum(f.stat().st_size for part in source.transformers() for f in tensor_files(folder / part))
