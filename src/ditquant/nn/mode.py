"""Trade memory for speed: whether quantized layers keep their decoded INT8 weights."""

from torch import nn

from ditquant.attention import use_compiled_attention
from ditquant.errors import DitQuantError
from ditquant.kernels import forget_decoded
from ditquant.nn.linear import QuantLinear

MODES = ("memory", "speed")


def set_mode(model: nn.Module, mode: str) -> None:
    """Choose what the quantized layers of a model keep between calls.

    "memory", the default, decodes weights in every forward. "speed" keeps decoded INT8 weights, one byte each, where
    decoding takes a noticeable part of the time: with the compiled CPU kernels in layers that see up to 512 tokens,
    with torch's integer product in all of them. What is kept is no part of the state dict, is made again after loading
    or moving, and is dropped by "memory". Layers whose activations are not quantized keep nothing.

    Either lets diffusers' attention layers attend by the compiled kernels, which costs no memory: in bfloat16 on a CPU
    that has it. `ditquant.attention.use_compiled_attention(model, False)` gives torch's attention back. And either lets
    layers that end in diffusers' GELU (tanh) compute it in the kernel of the product.

    Raises:
        DitQuantError: another mode, a pipeline, or a model without quantized layers.
    """
    from ditquant.nn.gelu import fuse_gelu  # imports diffusers

    if mode not in MODES:
        raise DitQuantError(f"mode {mode!r} is not allowed. Choose one of {', '.join(MODES)}.")
    if not isinstance(model, nn.Module):
        raise DitQuantError(f"set_mode takes a model, not a {type(model).__name__}. Pass pipe.transformer.")
    layers = [module for module in model.modules() if isinstance(module, QuantLinear)]
    if not layers:
        raise DitQuantError(f"{type(model).__name__} has no quantized layers. Quantize it, or load a quantized model.")
    for layer in layers:
        layer.keeps_decoded = mode == "speed"
        if mode == "memory" and not layer.codes.is_meta:
            forget_decoded(layer.codes)
    use_compiled_attention(model)
    fuse_gelu(model)
