"""Compile every kernel that a call would start, for cards that are not there, down to machine code."""

import inspect
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from ditquant.kernels.triton.available import INTERPRETED

OPTIONS = ("num_warps", "num_stages")
TYPES = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.int16: "i16",
    torch.int32: "i32",
}


@dataclass(frozen=True)
class Compiled:
    """A kernel in machine code: its PTX, and the bytes of shared memory and of registers that went to memory."""

    name: str
    capability: int
    ptx: str
    shared: int
    spilled: int


def compile_call(call: Callable[[], Any], capabilities: Iterable[int], monkeypatch) -> list[Compiled]:
    """Compile the kernels of a call for each of the capabilities instead of running them."""
    found: list[Compiled] = []

    def record(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        found.extend(_compile(self, kwargs, capability) for capability in capabilities)

    with monkeypatch.context() as patch:
        patch.setattr(JITFunction, "run", record)
        call()
    return found


def _compile(kernel: JITFunction, arguments: dict[str, Any], capability: int) -> Compiled:
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(kernel.params):
        value = arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TYPES[value.dtype]
            attributes[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = "i32" if type(value) is int else "fp32"
            if type(value) is int and value % 16 == 0 and not parameter.do_not_specialize:
                attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constants, attributes)
    options = {name: arguments[name] for name in OPTIONS if name in arguments}
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    return Compiled(kernel.__name__, capability, made.asm["ptx"], made.metadata.shared, _spilled(made))


def _spilled(made: Any) -> int:
    """Bytes of local memory a thread, as the tool that comes with Triton tells."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    usage = dict(part.split(":")[:2] for part in text.split() if ":" in part)
    return int(usage["STACK"]) + int(usage["LOCAL"])


def can_compile() -> bool:
    """Say whether this Triton takes sources as `_compile` makes them, and brings the assembler and its tool."""
    return "constexprs" in inspect.signature(ASTSource.__init__).parameters and not INTERPRETED
