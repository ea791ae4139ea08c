"""`QuantLinear`: the one module that replaces nn.Linear, whatever the method."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ditquant import kernels
from ditquant.errors import damaged
from ditquant.formats import FORMATS, PackedWeight, layout
from ditquant.nn.decoded import DecodedWeight
from ditquant.nn.fuse import fuse
from ditquant.nn.low_rank import LowRank
from ditquant.nn.straight_through import StraightThrough
from ditquant.specs import LayerPlan, check_divides
from ditquant.transforms import TRANSFORMS
from ditquant.transforms.base import Transform
from ditquant.words import from_words, to_words, word_dtype


class QuantLinear(nn.Linear):
    """y = product(quantize(transforms(x)), packed weight) + low_rank(transforms(x)) + bias.

    State: `codes`, the parameters of the format, those of the transforms and of the low-rank branch where the plan has
    a rank, all integer Parameters (see `words`); `bias` as it was. `weight` is decoded when it is read, in the original
    basis, so that LoRA adapters and inspections work.
    """

    keeps_decoded = False  # see `set_mode`

    def __init__(self, in_features: int, out_features: int, bias: bool, plan: LayerPlan, device=None, dtype=None):
        nn.Module.__init__(self)
        if plan.activation is not None and plan.activation.group_size is not None:
            check_divides(plan.activation.group_size, in_features, "the layer")
        self.in_features, self.out_features, self.plan = in_features, out_features, plan
        self._layout = layout(plan.weight, out_features, in_features)
        for name, (shape, kind) in self._layout.items():
            setattr(self, name, to_words(torch.empty(shape, dtype=kind, device=device)))
        self.transforms = nn.ModuleList(
            TRANSFORMS[t.kind].empty(in_features, **t.options).to(device or "cpu") for t in plan.transforms
        )
        self.low_rank = LowRank.empty(in_features, out_features, plan.rank, device) if plan.rank else None
        self.bias = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        # without a bias nothing else would follow the model's dtype
        self.register_buffer("_dtype", torch.empty(0, dtype=dtype or torch.get_default_dtype()), persistent=False)

    @staticmethod
    def from_linear(
        linear: nn.Linear,
        weight: PackedWeight,
        transforms: Sequence[Transform],
        plan: LayerPlan,
        low_rank: LowRank | None = None,
    ) -> "QuantLinear":
        """Take over a layer's bias, device, dtype and mode with its quantized weight and fitted parts."""
        device, dtype = linear.weight.device, linear.weight.dtype
        new = QuantLinear(linear.in_features, linear.out_features, linear.bias is not None, plan, "meta", dtype)
        for name, value in {"codes": weight.codes, **weight.params}.items():
            setattr(new, name, to_words(value.to(device)))
        new.transforms = nn.ModuleList(t.to(device) for t in transforms)
        new.low_rank = None if low_rank is None else low_rank.to(device)
        new.bias = linear.bias
        new._dtype = torch.empty(0, dtype=dtype, device=device)
        return new.train(linear.training)

    def packed(self) -> PackedWeight:
        """Return the stored weight, in the basis of the transforms."""
        params = {name: from_words(getattr(self, name), kind) for name, (_, kind) in self._layout.items()}
        codes = params.pop("codes")
        return PackedWeight(codes, params, (self.out_features, self.in_features), self.plan.weight)

    def dequantize(self) -> Float[Tensor, "N K"]:
        """Decode the weight and undo the transforms, in float32."""
        # The law of a transform x -> x M gives weight @ M.T, which is what its backward multiplies a gradient by.
        with torch.inference_mode(False), torch.enable_grad():
            weight = self.packed().dequantize()
            if self.low_rank is not None:
                weight = weight + self.low_rank.product()
            if not len(self.transforms):
                return weight
            x = torch.zeros_like(weight, requires_grad=True)
            return torch.autograd.grad(self.transform(x), x, weight)[0]

    @property
    def weight(self) -> Tensor:
        """The decoded weight in the model's dtype; read only."""
        dtype = self._dtype.dtype
        return self.dequantize().to(dtype) if torch.compiler.is_compiling() else DecodedWeight.of(self, dtype)

    def transform(self, x: Float[Tensor, "*B K"]) -> Float[Tensor, "*B K"]:
        """Apply the transforms in order."""
        for transform in self.transforms:
            x = transform(x)
        return x

    def forward(self, input: Float[Tensor, "*B K"], gelu: bool = False) -> Float[Tensor, "*B N"]:
        """Compute the layer in the dtype of `input`, which has the name that nn.Linear gives it, or in autocast's.

        `gelu` ends with a GELU (tanh), in the same pass where a kernel can.
        """
        device = input.device.type
        if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
            return self._forward(input, gelu)
        dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            return self._forward(input.to(dtype), gelu)

    def _forward(self, input: Float[Tensor, "*B K"], gelu: bool) -> Float[Tensor, "*B N"]:
        weight, activation = self.packed(), self.plan.activation
        takes = self.low_rank is None and kernels.takes_rotation(input, weight, activation)
        rotation = fuse(self.transforms, input.device) if takes else None
        trains = input.requires_grad or (self.bias is not None and self.bias.requires_grad)
        if torch.is_grad_enabled() and trains:
            x = self.transform(input)
            y = StraightThrough.apply(x, self.bias, weight, activation, input.detach(), rotation)
        else:
            x = self.transform(input) if rotation is None else input
            fused = gelu and self.low_rank is None
            y = kernels.linear(x, weight, activation, self.bias, rotation, self.keeps_decoded, fused)
            gelu = gelu and not fused
        y = y if self.low_rank is None else y + self.low_rank(x)
        return F.gelu(y, approximate="tanh") if gelu else y

    def check(self, name: str) -> None:
        """Raise DitQuantError if the values that were loaded cannot be those of a quantized layer."""
        for key, (shape, kind) in self._layout.items():
            words = getattr(self, key)
            if words.is_meta or words.shape != shape or words.dtype != word_dtype(kind):
                found = "nothing" if words.is_meta else f"{words.dtype} {tuple(words.shape)}"
                raise damaged(f"{name}.{key}: expected {word_dtype(kind)} {shape}, found {found}")
        problem = FORMATS[self.plan.weight.format].check(self.packed().params, self.plan.weight)
        if problem:
            raise damaged(f"{name}: {problem}")
        for part in (*self.transforms, *([] if self.low_rank is None else [self.low_rank])):
            part.check(name)

    def extra_repr(self) -> str:
        """Show the widths and what was decided."""
        weight, activation = self.plan.weight, self.plan.activation
        acts = "16-bit activations" if activation is None else f"{activation.bits}-bit {activation.granularity}"
        rank = f", rank {self.plan.rank}" if self.plan.rank else ""
        return f"{self.in_features} -> {self.out_features}, {weight.format} {weight.bits} bits, {acts}{rank}"

    def reset_parameters(self) -> None:
        """Do nothing: the layer is filled from a checkpoint or from `from_linear`."""
