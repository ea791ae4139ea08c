"""What is measured: a transformer and the arguments of one call of it."""

import copy
import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from ditquant.errors import DitQuantError
from ditquant.integrations.diffusers import transformers_of
from ditquant.models import SHAPES
from ditquant.pipelines import clear_errors, conditions, quiet, settings_of
from ditquant.pipelines.conditions import accepted

PROMPT = "a photo"


@dataclass(frozen=True)
class Subject:
    """A transformer in full precision or quantized; `arguments` are those of one call, `facts` tell what it is."""

    model: nn.Module
    arguments: Mapping[str, Any]
    facts: Mapping[str, Any]
    device: str = "cpu"

    def call(self, model: nn.Module) -> Tensor:
        """Run the call on a model: this one, or one that was made of it."""
        return model(**self.arguments, return_dict=False)[0]

    def exact(self) -> Tensor:
        """Return what the model gives in float32."""
        wide = copy.deepcopy(self.model).float()
        return wide(**tree_map_only(Tensor, _float, dict(self.arguments)), return_dict=False)[0]


def _float(x: Tensor) -> Tensor:
    return x.float() if x.is_floating_point() else x


def shape_subject(
    name: str, blocks: int | None, tokens: int | None, batch: int, dtype: torch.dtype, device: str = "cpu"
) -> Subject:
    """Build a real shape with random weights.

    Raises:
        DitQuantError: an unknown shape, or blocks or tokens that it does not take.
    """
    shape = SHAPES[name]
    arguments = shape.arguments(tokens, batch, dtype, device)
    facts = {"shape": name, "blocks": blocks or next(iter(shape.blocks.values())), "tokens": tokens, "batch": batch}
    return Subject(shape.build(blocks, dtype, device), arguments, facts, device)


def pipeline_subject(pipeline: Any, name: str, batch: int, device: str = "cpu") -> Subject:
    """Take a pipeline's first transformer, and what it is first called with at the pipeline's own size.

    Raises:
        DitQuantError: the pipeline cannot run, or does not call it.
    """
    model = next(iter(transformers_of(pipeline).values()))

    def note(_module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments
        bound.pop("self")
        bound.pop("return_dict", None)
        raise _Seen(tree_map_only(Tensor, torch.clone, dict(bound)))

    labels = "class_labels" in accepted(pipeline)
    key, values = conditions(pipeline, [0 if labels else PROMPT] * batch)
    handle = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with quiet(pipeline), clear_errors(pipeline, batch):
            pipeline(**{key: values}, output_type="latent", **settings_of(pipeline))
    except _Seen as seen:
        return Subject(model, seen.arguments, {"model": name, "batch": batch}, device)
    finally:
        handle.remove()
    raise DitQuantError(f"{name!r} did not call its transformer. Measure a --shape instead.")


class _Seen(Exception):
    """Ends a pipeline's run at the first call of its transformer."""

    def __init__(self, arguments: dict[str, Any]):
        super().__init__()
        self.arguments = arguments
