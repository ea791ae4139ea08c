"""A model carries its attention plan: it attends by it, saves it beside its weights, and gets it back when loaded."""

from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ditquant.attention import AttentionPlan, apply_plan, load_plan, save_plan
from ditquant.attention.plan_file import plan_checksum
from ditquant.errors import damaged

FILE = "attention.safetensors"  # beside the weights


def attend_by(model: nn.Module, plan: AttentionPlan) -> None:
    """Let a model attend by a plan, and save the plan with it.

    Raises:
        DitQuantError: the plan is for other blocks or heads.
    """
    stop_attending(model)
    undo = apply_plan(model, plan)
    model.attention_plan, model.stop_attention_plan = plan, undo
    if hasattr(model, "save_config"):
        model.save_config = partial(_save_config, model)


def stop_attending(model: nn.Module) -> None:
    """Let a model attend as diffusers does again, and forget its plan."""
    undo = model.__dict__.pop("stop_attention_plan", None)
    if undo is not None:
        undo()
    for name in ("attention_plan", "save_config"):
        model.__dict__.pop(name, None)


def plan_of(model: nn.Module) -> AttentionPlan | None:
    """Return the plan that a model attends by."""
    return model.__dict__.get("attention_plan")


def entry(plan: AttentionPlan) -> dict[str, Any]:
    """Return what config.json says about a plan."""
    return {
        "file": FILE,
        "crc32": plan_checksum(plan),
        "density": plan.density if plan.masks is not None else None,
        "qk_bits": plan.qk_bits,
        "pv_bits": plan.pv_bits,
    }


def attend_as_saved(model: nn.Module, folder: Path, saved: dict[str, Any]) -> None:
    """Read the plan beside a model's weights, and let it attend by it.

    Raises:
        DitQuantError: no such file, another plan than the one in config.json, or one for another model.
    """
    path = folder / FILE
    if not path.is_file():
        raise damaged(f"{FILE} is missing beside the weights")
    plan = load_plan(path)
    if entry(plan) != saved:
        raise damaged(f"{FILE} is not the attention plan that config.json was saved with")
    attend_by(model, plan)


def _save_config(model: nn.Module, save_directory: Any, *args: Any, **kwargs: Any) -> Any:
    saved = type(model).save_config(model, save_directory, *args, **kwargs)
    save_plan(model.attention_plan, Path(save_directory) / FILE, overwrite=True)
    return saved
