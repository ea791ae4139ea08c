"""Find and load the compiled library that suits this processor, once, when it is first needed."""

import ctypes
import importlib.machinery
import os
from functools import cache
from pathlib import Path

import torch

SWITCH = "DITQUANT_CPU_KERNELS"  # 0 leaves the libraries alone, avx2 takes no other, avx512 takes no AMX
_POINTER, _INT64, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
_SIGNATURES = {
    "ditquant_attention": [
        *(_POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER),
        *(_INT64, _INT64, _INT64, _INT64, _INT64, _FLOAT, _INT, _INT, _INT, _INT),
    ],
    "ditquant_decode": [_POINTER, _POINTER, _INT64, _INT, _INT64, _INT64, _POINTER, _POINTER, _INT],
    "ditquant_decode_groups": [
        *(_POINTER, _POINTER, _POINTER, _INT, _INT64, _INT64, _INT64, _INT64),
        *(_POINTER, _POINTER, _POINTER, _INT),
    ],
    "ditquant_linear": [
        *(_POINTER, _POINTER, _POINTER, _INT64),
        *(_POINTER, _POINTER, _INT64, _INT, _INT64, _INT64, _POINTER, _POINTER),
        *(_POINTER, _POINTER, _POINTER, _INT, _INT, _INT),
    ],
    "ditquant_linear_groups": [
        *(_POINTER, _POINTER, _POINTER, _INT64, _INT64),
        *(_POINTER, _POINTER, _POINTER, _INT, _INT64, _INT64, _INT64, _INT64, _POINTER, _POINTER, _POINTER),
        *(_POINTER, _POINTER, _INT, _INT),
    ],
    "ditquant_quantize": [
        *(_POINTER, _INT, _INT64, _INT64, _POINTER, _INT64, _POINTER, _POINTER, _POINTER),
        *(_INT, _INT, _FLOAT, _INT64, _POINTER, _POINTER, _POINTER, _INT),
    ],
    "ditquant_tiles": [
        *(_POINTER, _POINTER, _POINTER, _INT64, _INT64, _INT64, _INT64, _FLOAT, _FLOAT),
        *(_POINTER, _POINTER, _POINTER, _INT),
    ],
}
_ONLY_AVX512 = {"ditquant_attention", "ditquant_tiles"}
_LIBRARIES = {"_native": set(_SIGNATURES), "_native_avx2": set(_SIGNATURES) - _ONLY_AVX512}
# there torch has an integer product of its own, which the one for AVX2 was not compared with
_TORCH_HAS_AVX512 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


@cache
def _load() -> tuple[ctypes.CDLL | None, str | None]:
    """Return the first library that this processor can run, or why there is none."""
    if os.environ.get(SWITCH) == "avx2":
        names = ["_native_avx2"]
    else:
        names = ["_native"] if _TORCH_HAS_AVX512 else ["_native", "_native_avx2"]
    reasons = []
    for name in names:
        library, reason = _open(name, _LIBRARIES[name])
        if library is not None:
            return library, None
        reasons.append(reason)
    return None, ", and ".join(dict.fromkeys(reasons))


def _open(name: str, functions: set[str]) -> tuple[ctypes.CDLL | None, str | None]:
    folder = Path(__file__).parent
    files = (folder / f"{name}{suffix}" for suffix in importlib.machinery.EXTENSION_SUFFIXES)
    found = next((file for file in files if file.exists()), None)
    if found is None:
        return None, "the compiled CPU kernels are not installed (no C++ compiler was at hand)"
    try:
        library = ctypes.CDLL(str(found))
        for function in functions:
            entry = getattr(library, function)
            entry.argtypes, entry.restype = _SIGNATURES[function], None
        if hasattr(library, "ditquant_use_amx"):
            library.ditquant_use_amx(os.environ.get(SWITCH) != "avx512")
        for function in ("ditquant_missing", "ditquant_missing_attention"):
            getattr(library, function).restype = ctypes.c_char_p
    except (OSError, AttributeError) as error:
        return None, f"the compiled CPU kernels cannot be loaded: {error}"
    missing = library.ditquant_missing()
    return (library, None) if missing is None else (None, f"this CPU has no {missing.decode()}")


@torch.compiler.assume_constant_result
def why_not() -> str | None:
    """Say why no library is used; None if one is."""
    if os.environ.get(SWITCH) == "0":
        return f"{SWITCH} is 0"
    return _load()[1]


@torch.compiler.assume_constant_result
def why_not_wide() -> str | None:
    """Say why what only the library for AVX512 has is not used; None if it is."""
    if (reason := why_not()) is not None:
        return reason
    return None if hasattr(library(), "ditquant_tiles") else "the compiled kernels for AVX2 do not have it"


@torch.compiler.assume_constant_result
def why_not_attention() -> str | None:
    """Say why the compiled attention is not used; None if it is."""
    if (reason := why_not()) is not None:
        return reason
    missing = library().ditquant_missing_attention()
    return None if missing is None else f"this CPU has no {missing.decode()}"


def library() -> ctypes.CDLL:
    """Return the loaded library.

    Raises:
        RuntimeError: there is none; `why_not` tells before.
    """
    loaded, reason = _load()
    if loaded is None:
        raise RuntimeError(reason)
    return loaded


def pointer(tensor: torch.Tensor | None) -> int | None:
    """Address of the first element of a tensor in memory."""
    if tensor is None:
        return None
    if tensor.device.type != "cpu" or not tensor.is_contiguous():
        raise RuntimeError(f"a compiled kernel got a tensor on {tensor.device}, strides {tensor.stride()}")
    return tensor.data_ptr()
