"""Build the CPU kernels where a compiler is at hand; without one the package installs without them.

Everything else stands in pyproject.toml.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/ditquant/kernels/cpu/native")
AVX512 = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512vnni", "avx512bf16", "f16c", "fma")
AVX2 = ("avx2", "f16c", "fma")
WARNINGS = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")  # GCC 12 means its own headers
FLAGS = ["-O3", "-g0", "-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", *WARNINGS]
X86_64 = platform.system() == "Linux" and platform.machine() in ("x86_64", "AMD64")


def library(name: str, folder: Path, instructions: tuple[str, ...]) -> Extension:
    """One library for one set of instructions.

    It is loaded through ctypes: it has no Python in it, and says what the processor lacks before it is used.
    """
    return Extension(
        f"ditquant.kernels.cpu.{name}",
        sources=sorted(str(path) for path in folder.glob("*.cpp")),
        depends=sorted(str(path) for path in NATIVE.rglob("*") if path.is_file()),
        language="c++",
        extra_compile_args=[*FLAGS, *(f"-m{x}" for x in instructions)],
        extra_link_args=["-ldl", "-lpthread"],
        optional=True,
    )


kernels = [library("_native", NATIVE, AVX512), library("_native_avx2", NATIVE / "avx2", AVX2)]

setup(ext_modules=kernels if X86_64 else [])
