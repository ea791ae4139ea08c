"""Where a model comes from: a shipped name, a local folder, or a name on the hub; a pipeline or a single component."""

import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditquant.errors import DitQuantError, damaged
from ditquant.registry import unknown

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def shipped() -> dict[str, Path]:
    """Return the folders of the models that come with the package, by name."""
    assets = Path(str(resources.files("ditquant") / "assets"))
    return {p.parent.name: p.parent for p in sorted(assets.glob("*/model_index.json"))}


@dataclass(frozen=True)
class Source:
    """A model that was found; `index` is its model_index.json, or its config.json if it is a single component."""

    name: str
    folder: Path | None
    index: dict[str, Any]

    @property
    def is_pipeline(self) -> bool:
        """False for a single component, a folder with a config.json."""
        return "_diffusers_version" in self.index and any(isinstance(v, list) for v in self.index.values())

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
        if self.folder is not None:
            return self.folder
        from diffusers import DiffusionPipeline
        from huggingface_hub import snapshot_download

        try:
            if self.is_pipeline:
                return Path(DiffusionPipeline.download(self.name, use_safetensors=True))
            return Path(snapshot_download(self.name, allow_patterns=["*.json", "*.safetensors"]))
        except (OSError, ValueError) as error:
            raise DitQuantError(f"cannot download {self.name!r}: {first_line(error)}") from None


def find(name: str) -> Source:
    """Find a model by name; reads a few kilobytes of JSON.

    Raises:
        DitQuantError: no such folder or shipped model, and no such name on the hub or no hub.
    """
    folder = shipped().get(name) or (Path(name) if Path(name).is_dir() else None)
    if folder is None and (Path(name).exists() or name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise unknown("model (no such folder, shipped model or hub name like 'owner/model')", name, shipped())
    for file in ("model_index.json", "config.json"):
        index = _read_json(name, folder, file, missing_ok=True)
        if index is not None:
            return Source(name, folder, index)
    raise DitQuantError(
        f"{name!r} holds neither model_index.json nor config.json. Give a pipeline's folder or one of its components."
    )


def _read_json(name: str, folder: Path | None, file: str, missing_ok: bool = False) -> Any:
    try:
        path = folder / file if folder is not None else _fetch(name, file)
        data = json.loads(path.read_text()) if path is not None and path.exists() else None
    except (OSError, ValueError) as error:
        raise damaged(f"cannot read {file} of {name!r}: {first_line(error)}") from None
    if data is None and not missing_ok:
        raise damaged(f"{name!r} has no {file}")
    if data is not None and not isinstance(data, dict):
        raise damaged(f"{file} of {name!r} is not a mapping")
    return data


def _fetch(name: str, file: str) -> Path | None:
    """Read a file of a hub model; None if the model has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(hf_hub_download(name, file))
    except LocalEntryNotFoundError:
        raise DitQuantError(
            f"{name!r} is no local folder or shipped model ({', '.join(shipped()) or 'none'}), and the hub "
            "cannot be reached. Check the name, or the connection."
        ) from None
    except EntryNotFoundError:
        return None
    except Exception as error:  # the hub client's errors have no common class
        raise DitQuantError(f"cannot read {name!r} from the hub: {first_line(error)}") from None


def skeleton(config: dict[str, Any], name: str) -> nn.Module:
    """Build a component from its config on the meta device: shapes without values."""
    import diffusers
    from accelerate import init_empty_weights

    kind = getattr(diffusers, str(config.get("_class_name")), None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.ModelMixin)):
        raise DitQuantError(f"{name!r} is a {config.get('_class_name')!r}, which is no model class of diffusers.")
    known = {key: value for key, value in config.items() if key != "quantization_config"}
    with init_empty_weights(include_buffers=True):
        return kind.from_config(known)


def load(source: Source, dtype: torch.dtype, device: str = "cpu") -> Any:
    """Load a pipeline, or a single component as a module.

    Raises:
        DitQuantError: a class that diffusers does not have, or files that are damaged or missing.
    """
    import diffusers

    folder = source.local()
    kind = diffusers.DiffusionPipeline if source.is_pipeline else getattr(diffusers, source.class_name, None)
    if kind is None or not hasattr(diffusers, source.class_name):
        raise DitQuantError(f"{source.name!r} is a {source.class_name!r}, which this diffusers does not have.")
    try:
        return kind.from_pretrained(folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True).to(device)
    except DitQuantError:
        raise
    except Exception as error:  # whatever a damaged file makes diffusers, transformers or safetensors raise
        raise DitQuantError(f"cannot load {source.name!r}: {first_line(error)}") from error


def load_pipeline(name: str, dtype: torch.dtype, device: str = "cpu") -> Any:
    """Load a pipeline by name; raises DitQuantError for a single component."""
    source = find(name)
    if not source.is_pipeline:
        raise DitQuantError(f"{name!r} is a single {source.class_name}. Generating needs a pipeline's folder.")
    return load(source, dtype, device)


def first_line(error: BaseException) -> str:
    """Return an error's first line, or its class if it has none."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def stored_dtype(source: Source) -> torch.dtype:
    """Return the floating dtype that a model's first transformer is stored in, float32 if it has none."""
    from safetensors import safe_open

    part = next(iter(source.transformers()))
    for file in sorted((source.local() / part).glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            kinds = {tensors.get_slice(key).get_dtype() for key in tensors.keys()}  # noqa: SIM118
        for name, dtype in (("F32", torch.float32), ("BF16", torch.bfloat16), ("F16", torch.float16)):
            if name in kinds:
                return dtype
    return torch.float32


def check_calibration(source: Source, prompts: list[Any] | None) -> None:
    """Refuse what cannot be calibrated, before anything is loaded: prompts for a single component."""
    if prompts is not None and not source.is_pipeline:
        raise DitQuantError(
            f"{source.name!r} is a single {source.class_name}, which cannot run prompts. "
            "Give the pipeline's folder, or leave --prompts out to quantize data-free."
        )
