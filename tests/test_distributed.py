"""Two ranks make what one makes, to the bit, the first one writes and prints, and all end together."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from ditquant import distributed
from ditquant.errors import DitQuantError
from tests import ranks
from tests.cli.command import saved
from tests.search.built import save_tiny
from tests.tiny import PROMPTS, tiny_pixart_pipeline

ROOT = Path(__file__).parents[1]


def start(mode: str, place: Path, out: Path, **environment: str) -> list[subprocess.Popen]:
    """Start two ranks as a launcher does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.ranks", mode, str(place), str(out)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    path = os.pathsep.join(p for p in sys.path if p)
    return [
        subprocess.Popen(
            command,
            env={**os.environ, **common, **environment, "RANK": str(i), "LOCAL_RANK": str(i), "PYTHONPATH": path},
            **pipes,
        )
        for i in range(2)
    ]


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Models, and what they are asked."""
    folder = tmp_path_factory.mktemp("ranks")
    tiny_pixart_pipeline().save_pretrained(folder / "px")
    tiny_pixart_pipeline(1).save_pretrained(folder / "other")
    save_tiny(folder / "dit")
    (folder / "prompts.txt").write_text("\n".join([*PROMPTS, "a red square"]))
    return folder


def test_two_ranks_make_what_one_makes(place, tmp_path, capsys):
    workers = start("run_all", place, tmp_path / "two")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ranks.run_all(place, tmp_path / "one")
    finally:
        torch.set_num_threads(threads)
    said = [worker.communicate(timeout=600) for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], said
    assert said[1] == ("", ""), "the second rank is silent"
    assert said[0][0].count("saved to") == capsys.readouterr().out.count("saved to") == 3
    one, two = tmp_path / "one", tmp_path / "two"
    assert len(list((two / "pictures").iterdir())) == 5
    assert saved(one / "pictures") == saved(two / "pictures")
    assert saved(one / "quantized") == saved(two / "quantized"), "the same calls, codes and plan"
    assert len(torch.load(one / "statistics.pt")) > 20
    torch.testing.assert_close(torch.load(two / "statistics.pt"), torch.load(one / "statistics.pt"), rtol=0, atol=0)
    assert saved(one / "report" / "pictures") == saved(two / "report" / "pictures")
    first, second = (measured(folder / "report" / "results.json") for folder in (one, two))
    assert first == second
    trials = [json.loads((folder / "plan" / "trials.json").read_text())["candidates"] for folder in (one, two)]
    uniform = [{c["label"]: c["errors"] for c in found if c["label"]} for found in trials]
    assert uniform[0] == uniform[1] and set(uniform[1]) == {"g = 64", "full row"}
    journal = (two / "plan" / "journal.log").read_text()
    assert (
        len({line.split('"worker":"')[1].split('"')[0] for line in journal.splitlines() if '"worker":"' in line}) == 2
    )


def measured(path: Path) -> list[dict]:
    """Return what a comparison measured, without times and versions."""
    models = json.loads(path.read_text())["models"]
    return [{k: v for k, v in model.items() if k in ("values", "steps", "layers", "scores")} for model in models]


@pytest.mark.parametrize(
    ("mode", "said", "environment"),
    [
        ("one_fails", "error: this rank has no luck. (rank 1 of 2)", {}),
        ("all_fail", "error: nobody has luck.", {}),
        ("one_crashes", "error: a rank has crashed, or has not answered for 1800 s", {}),
        (
            "one_hangs",
            "error: a rank has crashed, or has not answered for 3 s, which DITQUANT_RANK_TIMEOUT_S sets",
            {"DITQUANT_RANK_TIMEOUT_S": "3"},
        ),
    ],
)
def test_an_error_of_one_rank_ends_all_with_one_line(tmp_path, mode, said, environment):
    begin = time.monotonic()
    workers = start(mode, tmp_path, tmp_path / "out", **environment)
    main, other = workers
    try:
        out, lines = main.communicate(timeout=600)
        assert main.returncode == 2 and out == ""
        if mode == "one_hangs":
            other.kill()  # as the launcher does when a rank has ended
        lines += other.communicate(timeout=600)[1]
    finally:
        for worker in workers:
            worker.kill()
    assert lines.startswith(said) and lines.count("\n") == 1 and "Traceback" not in lines
    assert not (tmp_path / "out").exists() and time.monotonic() - begin < ranks.HANGS_S


def test_without_a_launcher_there_is_one_rank(monkeypatch):
    for name in distributed.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with distributed.ranks():
        assert (distributed.rank(), distributed.count(), distributed.is_main()) == (0, 1, True)
        assert distributed.gather("x") == ["x"] and distributed.mine([1, 2, 3]) == [1, 2, 3]


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_waiting_time_that_is_none_is_refused(monkeypatch, text):
    monkeypatch.setenv(distributed.TIMEOUT_VARIABLE, text)
    with pytest.raises(DitQuantError, match=r"is not allowed\. Set a positive number of seconds"):
        distributed.start()
