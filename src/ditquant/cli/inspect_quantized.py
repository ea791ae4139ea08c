"""What `ditquant inspect` shows of a model that is quantized already."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ditquant.cli.show import console, printed
from ditquant.errors import DitQuantError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from ditquant.sources import Source


def show_quantized(source: Source, name: str, part: nn.Module, stored: Any, every: bool) -> None:
    """Print the formats that a quantized transformer's layers have, its bits a weight and its size."""
    import torch

    from ditquant.integrations.load import build_layers
    from ditquant.sizes import measure
    from ditquant.specs import QuantPlan, in_words
    from ditquant.stored import main_dtype, tensor_files

    method = stored.get("quant_method") if isinstance(stored, dict) else stored
    if method != "ditquant":
        raise DitQuantError(f"{source.name!r} is quantized by {method!r}. Give the full-precision model.")
    plan = QuantPlan.from_dict(stored.get("plan"))
    dtype = torch.bfloat16 if source.folder is None else main_dtype(source.folder / name)
    build_layers(part, plan, dtype)
    torch.nn.Module.to(part, dtype)  # diffusers' own refuses quantized models
    size = measure(part)
    out = console()
    out.print(
        f"{name or source.class_name}: {type(part).__name__}, quantized with {plan.recipe or 'a recipe'} "
        f"(plan {plan.hash()})"
    )
    if plan.attention is not None:
        out.print(f"attention: {_attention_in_words(plan.attention)}")
    if not plan.layers:
        return
    words = {n: in_words(e.weight, e.activation, e.transforms, e.rank) for n, e in plan.layers.items()}
    if every:
        table = printed("layer", "format")
        for layer, formats in words.items():
            table.add_row(layer, formats)
    else:
        table = printed("layers", "format", right=("layers",))
        for formats, count in Counter(words.values()).items():
            table.add_row(str(count), formats)
    out.print(table)
    if source.folder is None:
        total, where = size.total_bytes, "foreseen"
    else:
        total, where = sum(f.stat().st_size for f in tensor_files(source.folder / name)), "on disk"
    out.print(f"{size.bits_per_weight:.2f} bits a weight all-in, {total / 1e6:.1f} MB {where}")


def _attention_in_words(attention: Mapping[str, Any]) -> str:
    density, bits = attention.get("density"), {"QK": attention.get("qk_bits"), "PV": attention.get("pv_bits")}
    words = ["all tiles" if density is None else f"{100 * density:g} % of the tiles"]
    return ", ".join([*words, *(f"{name} in {n} bits" for name, n in bits.items() if n)])
