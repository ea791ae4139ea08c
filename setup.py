"""Build the CPU kernels where a compiler is at hand; without one the package installs without them.

Everything else stands in pyproject.toml.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/ditquant/kernels/cpu/native")
EXTENSIONS = ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512vbmi", "avx512vnni", "avx512bf16", "f16c", "fma")
WARNINGS = ("-Wno-uninitialized", "-Wno-maybe-uninitialized")  # GCC 12 means its own headers
FLAGS = [
    "-O3",
    "-g0",
    "-std=c++17",
    "-fvisibility=hidden",
    "-ffp-contract=off",
    *WARNINGS,
    *(f"-m{x}" for x in EXTENSIONS),
]
X86_64 = platform.system() == "Linux" and platform.machine() in ("x86_64", "AMD64")

# the library is loaded through ctypes: it has no Python in it, and asks the processor what it has before it is used
kernels = Extension(
    "ditquant.kernels.cpu._native",
    sources=sorted(str(path) for path in NATIVE.glob("*.cpp")),
    depends=sorted(str(path) for path in NATIVE.glob("*.h")),
    language="c++",
    extra_compile_args=FLAGS,
    extra_link_args=["-ldl", "-lpthread"],
    optional=True,
)

setup(ext_modules=[kernels] if X86_64 else [])
