"""The place that a model was loaded from, which diffusers writes into configs: it is no part of what is saved."""

import json
from pathlib import Path

_KEY = "_name_or_path"
_CONFIGS = ("model_index.json", "config.json")


def forget_source(folder: Path) -> None:
    """Take the place out of a saved pipeline's or component's configs; all else in them stays as it was written."""
    for file in [path for name in _CONFIGS for path in (folder / name, *folder.glob(f"*/{name}")) if path.exists()]:
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop(_KEY, None) is not None:
            file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
