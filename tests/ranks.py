"""What the processes of `test_distributed.py` do: commands as a user gives them, and ranks that end badly."""

import os
import sys
import time
from pathlib import Path

from ditquant import distributed
from ditquant.cli.app import fail, main
from ditquant.errors import DitQuantError

HANGS_S = 3600


def commands(place: Path, out: Path) -> list[list[object]]:
    """Return commands that read models and prompts in `place` and write into `out`."""
    px, dit, prompts, steps = place / "px", place / "dit", place / "prompts.txt", ["--steps", 2]
    return [
        ["generate", px, "--prompts", prompts, *steps, "--batch-size", 2, "-o", out / "pictures"],
        ["quantize", px, "--prompts", prompts, *steps, "--recipe", "gptq-w4a8", "-o", out / "quantized"],
        ["compare", px, place / "other", "--prompts", prompts, *steps, "--batch-size", 2, "-o", out / "report"],
        ["search", dit, "--steps", 1, "--groups", 64, "--trials", 6, "-o", out / "plan"],
    ]


def run_all(place: Path, out: Path) -> None:
    """Run the commands one after the other."""
    for words in commands(place, out):
        sys.argv = ["ditquant", *map(str, words)]
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    statistics(place, out / "statistics.pt")


def statistics(place: Path, file: Path) -> None:
    """Write what the layers of a model see, as in a calibration in one pass."""
    import torch

    from ditquant.calibration import PromptRun, collect
    from ditquant.sources import load_pipeline
    from tests.tiny import PROMPTS

    pipeline = load_pipeline(str(place / "px"), torch.float32)
    modules = {name: m for name, m in pipeline.transformer.named_modules() if isinstance(m, torch.nn.Linear)}
    seen = collect(modules, PromptRun(pipeline, PROMPTS[:3], 0, {"steps": 2}), grams=list(modules)[:9])
    if distributed.is_main():
        known = {n: (s.count, s.absmax, s.mean_absmax, s.mean_square, s.sample, s.gram) for n, s in seen.items()}
        torch.save(known, file)


def one_fails(_place: Path, out: Path) -> None:
    """Rank 1 finds an error while the other one waits for it."""
    if distributed.rank() == 1:
        raise DitQuantError("this rank has no luck.")
    distributed.gather(1)
    out.touch()


def all_fail(_place: Path, _out: Path) -> None:
    """All ranks find the same error."""
    raise DitQuantError("nobody has luck.")


def one_hangs(_place: Path, out: Path) -> None:
    """Rank 1 never answers."""
    if distributed.rank() == 1:
        time.sleep(HANGS_S)
    distributed.gather(1)
    out.touch()


def one_crashes(_place: Path, out: Path) -> None:
    """Rank 1 is gone without a word."""
    if distributed.rank() == 1:
        os._exit(9)
    distributed.gather(1)
    out.touch()


if __name__ == "__main__":
    with distributed.ranks():
        try:
            globals()[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))
        except DitQuantError as error:
            fail(str(error))
