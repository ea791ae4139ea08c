"""Where a model comes from: a shipped name, a local folder, or a name on the hub; a pipeline or a single component."""

import contextlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditquant.errors import DitQuantError, damaged, first_line
from ditquant.hub import download, fetch
from ditquant.quiet import quiet_libraries
from ditquant.registry import unknown
from ditquant.skeleton import model_class
from ditquant.stored import main_dtype, only_variant

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def shipped() -> dict[str, Path]:
    """Return the folders of the models that come with the package, by name."""
    assets = Path(str(resources.files("ditquant") / "assets"))
    return {p.parent.name: p.parent for p in sorted(assets.glob("*/model_index.json"))}


@dataclass(frozen=True)
class Source:
    """A model that was found; `index` is a pipeline's model_index.json or a single component's config.json."""

    name: str
    folder: Path | None
    index: dict[str, Any]
    is_pipeline: bool

    @property
    def class_name(self) -> str:
        """Class of the pipeline or component in diffusers."""
        return str(self.index.get("_class_name"))

    def transformers(self) -> dict[str, dict[str, Any]]:
        """Return the configs of the transformers by component name; "" names a single component."""
        if not self.is_pipeline:
            return {"": self.index}
        names = [n for n, v in self.index.items() if n.split("_")[0] == "transformer" and isinstance(v, list) and v[0]]
        if not names:
            raise DitQuantError(f"{self.name!r} is a {self.class_name} without a transformer. ditquant needs one.")
        return {n: _read_json(self.name, self.folder, f"{n}/config.json") for n in names}

    def local(self) -> Path:
        """Return the folder, downloading the safetensors files of a hub model first."""
        return self.folder or download(self.name, self.is_pipeline)


def find(name: str) -> Source:
    """Find a model by name; reads a few kilobytes of JSON.

    Raises:
        DitQuantError: no such folder or shipped model, and no such name on the hub or no hub.
    """
    path = Path(name).expanduser()
    folder = shipped().get(name) or (path if path.is_dir() else None)
    if folder is None and path.exists():
        raise DitQuantError(f"{name!r} is a file. Give the folder of a pipeline or of one of its components.")
    if folder is None and not _HUB_NAME.fullmatch(name):
        raise unknown("model (no such folder, shipped model or hub name like 'owner/model')", name, shipped())
    for file in ("model_index.json", "config.json"):
        index = _read_json(name, folder, file, missing_ok=True)
        if index is not None:
            return Source(name, folder, index, file == "model_index.json")
    raise DitQuantError(
        f"{name!r} holds neither model_index.json nor config.json. Give a pipeline's folder or one of its components."
    )


def _read_json(name: str, folder: Path | None, file: str, missing_ok: bool = False) -> Any:
    path = folder / file if folder is not None else fetch(name, file, shipped())
    try:
        data = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else None
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(f"cannot read {file} of {name!r}: {first_line(error)}") from None
    if data is None and not missing_ok:
        raise damaged(f"{name!r} has no {file}")
    if data is not None and not isinstance(data, dict):
        raise damaged(f"{file} of {name!r} is not a mapping")
    return data


def load(source: Source, dtype: torch.dtype, device: str = "cpu") -> Any:
    """Load a pipeline, or a single component as a module.

    Raises:
        DitQuantError: a class that diffusers does not have, or files that are damaged or missing.
    """
    import diffusers

    folder = source.local()
    _refuse_foreign_code(source, folder)
    with loading(source.name):
        parts = {n: _load_part(folder, n, config, dtype) for n, config in source.transformers().items()}
        if not source.is_pipeline:
            return parts[""].to(device)
        options = {"torch_dtype": dtype, "use_safetensors": True, "local_files_only": True}
        options["variant"] = only_variant(folder / next(iter(parts)))
        return diffusers.DiffusionPipeline.from_pretrained(folder, **parts, **options).to(device)


def _load_part(folder: Path, name: str, config: dict[str, Any], dtype: torch.dtype) -> nn.Module:
    part, found = model_class(config, name or str(folder)).from_pretrained(
        folder / name,
        torch_dtype=dtype,
        variant=only_variant(folder / name),
        use_safetensors=True,
        local_files_only=True,
        output_loading_info=True,
    )
    missing = sorted(set(found["missing_keys"]).intersection(n for n, _ in part.named_parameters()))
    if missing:
        # diffusers would fill them with random numbers
        raise damaged(f"{len(missing)} tensors are missing from the files of {name or folder}, such as {missing[0]!r}")
    return part


@contextlib.contextmanager
def loading(name: str) -> Iterator[None]:
    """Say in one line what went wrong, whatever a damaged file makes the libraries raise."""
    try:
        with quiet_libraries():
            yield
    except DitQuantError:
        raise
    except Exception as error:
        if "out of memory" in str(error) or "allocate memory" in str(error):
            raise
        raise DitQuantError(
            f"cannot load {name!r}: {first_line(error)} Check that its files are complete, and match its config."
        ) from error


def _refuse_foreign_code(source: Source, folder: Path) -> None:
    """Refuse a pipeline whose classes stand in Python files beside it; older versions of diffusers run them."""
    parts = [(name, v[0]) for name, v in source.index.items() if isinstance(v, list) and v and isinstance(v[0], str)]
    beside = any((folder / name / f"{module}.py").exists() for name, module in parts)
    if (source.is_pipeline and beside) or isinstance(source.index.get("_class_name"), list):
        raise DitQuantError(
            f"{source.name!r} brings Python code of its own, which is not run. "
            "Load it in Python, if you trust it, and pass the pipeline to ditquant.quantize."
        )


def load_pipeline(name: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """Load a pipeline by name; raises DitQuantError for a single component."""
    source = find(name)
    check_pipeline(source)
    return load(source, dtype, device)


def check_pipeline(source: Source) -> None:
    """Refuse to generate with a single component."""
    if not source.is_pipeline:
        raise DitQuantError(f"{source.name!r} is a single {source.class_name}. Generating needs a pipeline's folder.")


def stored_dtype(source: Source) -> torch.dtype:
    """Return the floating dtype that a model's first transformer is stored in, float32 if it has none."""
    return main_dtype(source.local() / next(iter(source.transformers())))


def check_calibration(source: Source, prompts: list[Any] | None) -> None:
    """Refuse what cannot be calibrated, before anything is loaded: prompts for a single component."""
    if prompts is not None and not source.is_pipeline:
        raise DitQuantError(
            f"{source.name!r} is a single {source.class_name}, which cannot run prompts. "
            "Give the pipeline's folder, or leave --prompts out to quantize data-free."
        )
