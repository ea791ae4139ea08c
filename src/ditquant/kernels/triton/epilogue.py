"""What follows a product: scales of rows and tokens, bias, GELU, and a gate on a residual."""

import triton
import triton.language as tl


@triton.jit
def finish(
    out, y, bias, gate, residual, token, row, mask, rows, tokens_per_gate,
    BIAS: tl.constexpr, GELU: tl.constexpr, GATE: tl.constexpr,
):  # fmt: skip
    """Store residual + gate * gelu(out + bias), of float32 sums out [M, N] at tokens [M] and rows [N].

    The GELU is the one with tanh, which diffusers calls "gelu-approximate"; a gate belongs to `tokens_per_gate` tokens.
    """
    if BIAS:
        out += tl.load(bias + row, mask=row < rows, other=0.0).to(tl.float32)[None, :]
    if GELU:
        out *= tl.sigmoid(1.5957691216057308 * (out + 0.044715 * out * out * out))
    place = token.to(tl.int64)[:, None] * rows + row[None, :]
    if GATE:
        gate_of = (token // tokens_per_gate).to(tl.int64)[:, None] * rows + row[None, :]
        out *= tl.load(gate + gate_of, mask=mask, other=0.0).to(tl.float32)
        out += tl.load(residual + place, mask=mask, other=0.0).to(tl.float32)
    tl.store(y + place, out, mask=mask)
