"""SDNQ in an environment of its own: a worker process quantizes the saved model and times its calls itself."""

import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import PIPE

import torch

from ditquant.bench.contestants import Contestant
from ditquant.bench.subject import Subject
from ditquant.bench.timing import Seconds
from ditquant.errors import DitQuantError

WORKER = Path(__file__).with_name("sdnq_worker.py")
WEIGHTS = ("int8", "int4")


def check_python(python: Path) -> None:
    """Refuse an interpreter that cannot be run."""
    if not os.access(python, os.X_OK) or python.is_dir():
        raise DitQuantError(f"{str(python)!r} is no Python that can be run. Give the path of an environment's python.")


@contextmanager
def sdnq(subject: Subject, python: Path, left_out: dict[str, str]) -> Iterator[list[Contestant]]:
    """Give the contestants of SDNQ's integer products; the worker ends with the block.

    Raises:
        DitQuantError: no such interpreter.
    """
    check_python(python)
    with tempfile.TemporaryDirectory() as folder:
        subject.model.save_pretrained(folder)
        torch.save(dict(subject.arguments), Path(folder) / "arguments.pt")
        workers: list[subprocess.Popen[str]] = []
        try:
            yield list(_contestants(subject, python, Path(folder), workers, left_out))
        finally:
            for worker in workers:
                worker.stdin.close()
                worker.wait()
                worker.stdout.close()


def _contestants(
    subject: Subject, python: Path, folder: Path, workers: list, left_out: dict[str, str]
) -> Iterator[Contestant]:
    for weights in WEIGHTS:
        name = f"sdnq {weights}, integer products"
        source = WORKER.read_text(encoding="utf-8")
        command = [str(python), "-c", source, str(folder), weights, str(torch.get_num_threads()), subject.device]
        with (folder / f"{weights}.log").open("w+") as said:
            worker = subprocess.Popen(command, stdin=PIPE, stdout=PIPE, stderr=said, text=True)
            workers.append(worker)
            line = worker.stdout.readline()
            if not line:
                said.seek(0)
                lines = said.read().strip().splitlines()
                left_out[name] = lines[-1] if lines else "its process ended without a word"
                continue
        size, grown = (int(word) for word in line.split())
        output = torch.load(folder / f"{weights}.pt")

        def run(worker=worker) -> Seconds:
            worker.stdin.write("run\n")
            worker.stdin.flush()
            return Seconds(worker.stdout.readline())

        yield Contestant(name, run, output, size, size, grown if grown >= 0 else None)
