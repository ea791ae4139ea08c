"""Load a saved model in a new process, up to its first output: seconds, and bytes at the peaks."""

import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ditquant.errors import DitQuantError

CODE = """
import json, sys, time
from pathlib import Path
import torch, diffusers, ditquant
from ditquant.bench.memory import growth
folder, threads, device, clock = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3], getattr(time, sys.argv[4])
torch.set_num_threads(threads)
cls = getattr(diffusers, json.loads((folder / "config.json").read_text())["_class_name"])
arguments, seconds = torch.load(folder / "arguments.pt"), []
def load_and_run():
    start = clock()
    model = cls.from_pretrained(folder, torch_dtype=torch.bfloat16).to(device)
    seconds.append(clock() - start)
    with torch.no_grad():
        model(**arguments, return_dict=False)
    seconds.append(clock() - start)
grown = growth(load_and_run, device)
peak = None if grown is None else grown / 1e6
print(json.dumps({"load_s": seconds[0], "first_output_s": seconds[1], "peak_mb": peak}))
"""


def loading(
    model: nn.Module, arguments: Mapping[str, Any], device: str = "cpu", times: int = 1, clock: str = "perf_counter"
) -> dict[str, float | None]:
    """Return medians: seconds of loading and up to the first output, megabytes of the peak.

    Raises:
        DitQuantError: the new process failed.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        torch.save(dict(arguments), Path(folder) / "arguments.pt")
        command = [sys.executable, "-W", "ignore", "-c", CODE, folder, str(torch.get_num_threads()), device, clock]
        for _ in range(times):
            run = subprocess.run(command, capture_output=True, text=True)
            if run.returncode:
                raise DitQuantError(f"loading failed: {run.stderr.strip().splitlines()[-1]}")
            found.append(json.loads(run.stdout.splitlines()[-1]))
    return {key: _median([one[key] for one in found]) for key in found[0]}


def _median(values: list[float | None]) -> float | None:
    return None if None in values else round(statistics.median(v for v in values if v is not None), 2)
