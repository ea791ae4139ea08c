"""`ditquant env`: what a bug report should say."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

PACKAGES = (
    "ditquant",
    "torch",
    "diffusers",
    "transformers",
    "accelerate",
    "safetensors",
    "huggingface_hub",
    "peft",
    "triton",
)


def env() -> None:
    """Print the versions and devices at hand."""
    import torch

    from ditquant.kernels import cpu

    print(f"{'python':16} {platform.python_version()} on {platform.platform()}")
    for name in PACKAGES:
        print(f"{name:16} {_version(name)}")
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} threads"
    print(f"{'cpu':16} {torch.backends.cpu.get_cpu_capability()}, {threads}")
    for name, reason in (("kernels", cpu.why_not()), ("attention", cpu.why_not_attention())):
        print(f"{name:16} {'compiled for this cpu' if reason is None else f'torch: {reason}'}")
    for i in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(i).total_memory / 2**30
        print(f"{f'cuda:{i}':16} {torch.cuda.get_device_name(i)}, {memory:.0f} GiB")
    if not torch.cuda.is_available():
        print(f"{'cuda':16} none")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
