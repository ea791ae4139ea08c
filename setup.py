"""Build the CPU kernels where a compiler is at hand; without one the package installs without them.

Everything else stands in pyproject.toml.
"""

import platform
from pathlib import Path

from setuptools import Extension, setup

NATIVE = Path("src/ditquant/kernels/cpu/native")
FLAGS = [
    *(
        "-O3",
        "-std=c++17",
        "-fvisibility=hidden",
        "-ffp-contract=off",
        "-Wno-uninitialized",
        "-Wno-maybe-uninitialized",
    ),
    *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mavx512vbmi", "-mavx512vnni", "-mf16c", "-mfma"),
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
