"""Say once which way a product is computed, and why not a faster one."""

import logging

import torch

log = logging.getLogger("ditquant.kernels")
_reported: set[str] = set()


def report(path: str, reason: str = "") -> None:
    """Log a way that is taken, the first time; nothing while a graph is traced."""
    line = f"{path}: {reason}" if reason else path
    if not torch.compiler.is_compiling() and line not in _reported:
        _reported.add(line)
        log.info("%s", line)
