"""Tensors of recorded calls: equal ones are kept once, and what exceeds a limit lies on disk."""

import hashlib
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ditquant.atomic import clear_errors

MEMORY_LIMIT = 2 << 30


@dataclass(frozen=True)
class Ref:
    """A tensor in a store."""

    key: str


class TensorStore:
    """Hold tensors on the CPU in their own dtype, up to `limit` bytes in memory and the rest in files.

    Use as a context: the files go when it ends.
    """

    def __init__(self, limit: int | None = None):
        self.limit = MEMORY_LIMIT if limit is None else limit
        self.memory_bytes = self.disk_bytes = 0
        self._tensors: dict[str, Tensor] = {}
        self._files: dict[str, int] = {}
        self._uses: Counter[str] = Counter()
        self._folder: tempfile.TemporaryDirectory | None = None
        self._numbers = count()

    def __enter__(self) -> "TensorStore":
        return self

    def __exit__(self, *_error: object) -> None:
        self._tensors.clear()
        if self._folder is not None:
            self._folder.cleanup()

    def put(self, tensor: Tensor, share: bool = True) -> Ref:
        """Keep a copy; `share` looks for an equal tensor first, which costs a pass over its bytes.

        Raises:
            DitQuantError: the disk is full.
        """
        value = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        key = _digest(value) if share else f"n{next(self._numbers)}"
        self._uses[key] += 1
        if self._uses[key] == 1:
            self._keep(key, value)
        return Ref(key)

    def again(self, ref: Ref) -> Ref:
        """Count one more use of a tensor."""
        self._uses[ref.key] += 1
        return ref

    def get(self, ref: Ref) -> Tensor:
        """Return a copy, which a block may write to."""
        if ref.key in self._tensors:
            return self._tensors[ref.key].clone()
        return load_file(self._path(ref.key))["x"]

    def drop(self, refs: Iterable[Ref]) -> None:
        """Forget one use of each; a tensor without uses is freed."""
        for ref in refs:
            self._uses[ref.key] -= 1
            if self._uses[ref.key]:
                continue
            del self._uses[ref.key]
            if ref.key in self._tensors:
                self.memory_bytes -= self._tensors.pop(ref.key).nbytes
            else:
                self.disk_bytes -= self._files.pop(ref.key)
                self._path(ref.key).unlink()

    def _keep(self, key: str, value: Tensor) -> None:
        if self.memory_bytes + value.nbytes <= self.limit:
            self._tensors[key] = value
            self.memory_bytes += value.nbytes
            return
        with clear_errors(Path(tempfile.gettempdir())):
            path = self._path(key)
            save_file({"x": value}, path)
        self._files[key] = value.nbytes
        self.disk_bytes += value.nbytes

    def _path(self, key: str) -> Path:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="ditquant-recorded-")
        return Path(self._folder.name) / f"{key}.safetensors"


def _digest(value: Tensor) -> str:
    content = value.reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.blake2b(f"{value.dtype}{tuple(value.shape)}".encode(), digest_size=16)
    digest.update(content)
    return digest.hexdigest()
