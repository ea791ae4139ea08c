"""Change what a saved tiny model says, and make its checksums right again: only the checks behind them are left."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from ditquant.errors import DitQuantError
from ditquant.integrations.checksums import KEY, checksum
from ditquant.specs import QuantPlan


def read(folder: Path) -> tuple[dict[str, Any], dict[str, Any], Path]:
    """Return config, tensors and the file that holds them."""
    file = next(folder.glob("*.safetensors"))
    return json.loads((folder / "config.json").read_text()), load_file(file), file


def write(folder: Path, config: dict[str, Any], tensors: dict[str, Any], file: Path, plan: str) -> None:
    """Store them with right checksums."""
    public = {k: v for k, v in config.items() if not k.startswith("_") and k != "quantization_config"}
    sums = {"tensors": {n: checksum(t) for n, t in tensors.items()}, "config": public, "plan": plan}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, file, metadata={"format": "pt", KEY: json.dumps(sums)})


def lie(folder: Path, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> None:
    """Apply `change(plan, tensors)` to the plan's JSON and the tensors."""
    config, tensors, file = read(folder)
    change(config["quantization_config"]["plan"], tensors)
    try:
        plan = QuantPlan.from_dict(config["quantization_config"]["plan"]).hash()
    except DitQuantError:
        plan = ""  # refused before it is compared
    write(folder, config, tensors, file, plan)
