"""A quantized layer taken apart: calls that do a part of its work, and whether their results are the reference's."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

from torch import Tensor

from ditquant import kernels
from ditquant.bench.timing import sqnr_db
from ditquant.formats import PackedWeight
from ditquant.kernels import cpu, quantize_activation
from ditquant.kernels.cpu.groups import multiply_groups
from ditquant.kernels.cpu.linear import Codes, multiply, quantize
from ditquant.kernels.cpu.ops import FEW_TOKENS
from ditquant.nn import QuantLinear
from ditquant.nn.fuse import fuse
from ditquant.specs import ActSpec

TWICE_DB = 6.0206  # between an error and one twice as large
CUT = 8  # channels of a row that is cut: their codes fill whole bytes


@dataclass(frozen=True)
class Part:
    """`run` takes the time of this part and of the parts in `without`; `sound` compares it with the reference."""

    run: Callable[[], object]
    sound: Callable[[], bool] = lambda: True
    without: tuple[str, ...] = ()


def parts_of(layer: QuantLinear, x: Tensor) -> dict[str, Part]:
    """Take a layer apart by name; one that the compiled kernels do not take is a single part."""
    weight, activation = layer.packed(), layer.plan.activation
    if activation is None:
        return {"unquantized input": Part(lambda: layer(x), lambda: _layer_is_sound(layer, x))}
    grouped = weight.spec.group_size is not None or activation.granularity == "group"
    if not _is_compiled(x, weight, activation, grouped):
        return {"product": Part(lambda: layer(x), lambda: _layer_is_sound(layer, x))}
    takes = layer.low_rank is None and kernels.takes_rotation(x, weight, activation)
    rotation = fuse(layer.transforms, x.device) if takes else None
    inside = x if rotation is not None else layer.transform(x)
    kept = layer.keeps_decoded and x.numel() <= FEW_TOKENS * x.shape[-1]

    def product(codes: Codes, part: PackedWeight = weight) -> Tensor:
        if grouped:
            return multiply_groups(codes, part, activation.group_size, layer.bias, x.dtype, kept)
        return multiply(codes, part, layer.bias, x.dtype, kept)

    codes, one = quantize(inside, activation, rotation), quantize(inside.flatten(0, -2)[:1], activation, rotation)
    codes_sound = cache(lambda: _codes_are_sound(layer, x, codes))
    product_sound = cache(lambda: _product_is_sound(layer, codes, product(codes)))
    found: dict[str, Part] = {}
    if rotation is not None and layer.transforms:
        less = ("activation quantization",)
        found["transform"] = Part(lambda: quantize(x, activation, rotation), codes_sound, less)
    elif layer.transforms:
        found["transform"] = Part(lambda: layer.transform(x))
    found["activation quantization"] = Part(lambda: quantize(inside, activation, None), codes_sound)
    found["decode"] = Part(lambda: product(one), product_sound)
    if not grouped and weight.shape[1] > CUT:
        few, cut = _first_channels(weight), (codes[0][:, :64].contiguous(), *codes[1:])
        found["epilogue"] = Part(lambda: product(cut, few), product_sound)
    less = tuple(name for name in ("decode", "epilogue") if name in found)
    found["product"] = Part(lambda: product(codes), product_sound, less)
    return found


def _is_compiled(x: Tensor, weight: PackedWeight, activation: ActSpec, grouped: bool) -> bool:
    if x.device.type != "cpu" or kernels.why_not_int8(x, weight, activation) not in (None, kernels.GROUPS):
        return False
    slow = cpu.why_not_groups(x, weight, activation) if grouped else cpu.why_not_rows(x, weight)
    return slow is None


def _first_channels(weight: PackedWeight) -> PackedWeight:
    codes = weight.codes[:, : weight.spec.bits].contiguous()
    return PackedWeight(codes, weight.params, (weight.shape[0], CUT), weight.spec)


def _as_good(exact: Tensor, found: Tensor, reference: Tensor) -> bool:
    """Say whether an error is under twice the reference's, both against float64."""
    return sqnr_db(exact, found) > sqnr_db(exact, reference) - TWICE_DB


def _decode(codes: Codes, width: int, group: int | None) -> Tensor:
    """Return in float64 what the codes of tokens stand for."""
    values, scale, zero = codes
    grouped = (values[:, :width].double() - 128).unflatten(1, (-1, group or width))
    steps, zeros = (t.double().view(len(values), -1, 1) for t in (scale, zero))
    return ((grouped - zeros) * steps).flatten(1)


def _codes_are_sound(layer: QuantLinear, x: Tensor, codes: Codes) -> bool:
    """Compare codes, and the rotation before them, with torch's."""
    activation, wide = layer.plan.activation, layer.transform(x.float())
    exact = layer.transform(x.double()).flatten(0, -2)
    reference = quantize_activation(wide, activation).dequantize().flatten(0, -2)
    return _as_good(exact, _decode(codes, x.shape[-1], activation.group_size), reference)


def _product_is_sound(layer: QuantLinear, codes: Codes, found: Tensor) -> bool:
    """Compare with the product of what codes and INT8 weights stand for."""
    weight = layer.packed()
    int8 = weight.to_int8()
    decoded = weight.dequantize() if int8 is None else int8[0].float() * int8[1][:, None]
    x = _decode(codes, weight.shape[1], layer.plan.activation.group_size)
    exact, reference = x @ decoded.double().T, x.float() @ decoded.T
    if layer.bias is not None:
        exact, reference = exact + layer.bias.double(), reference + layer.bias.float()
    return _as_good(exact, found, reference.to(found.dtype))


def _layer_is_sound(layer: QuantLinear, x: Tensor) -> bool:
    """Compare a whole layer with torch's reference in its dtype, against float64 on decoded weights."""
    weight, activation = layer.packed(), layer.plan.activation
    inside = layer.transform(x)
    reference = kernels.linear_reference(inside, weight, activation, layer.bias)
    exact = layer.transform(x.double()) @ weight.dequantize().double().T
    exact = exact if layer.bias is None else exact + layer.bias.double()
    if layer.low_rank is not None:
        reference = reference + layer.low_rank(inside)
        exact = exact + layer.low_rank(layer.transform(x.double()))
    return _as_good(exact, layer(x), reference)
