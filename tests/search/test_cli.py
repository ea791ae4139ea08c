"""`ditquant search` and `ditquant quantize --plan`, as a user calls them: killed, shared, and refused."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy
import torch

from ditquant.engine import quantize
from ditquant.errors import DitQuantError
from ditquant.evaluation.generate import generate
from ditquant.recipe import Recipe
from ditquant.search import Scorer
from ditquant.search.finalists import SEED_DISTANCE, network_features
from ditquant.sources import load_pipeline
from tests.cli.command import Run, ditquant, refused, saved, succeed
from tests.search.built import save_tiny

MODULE = [sys.executable, "-W", "ignore", "-m", "ditquant"]
ARGUMENTS = ["--steps", "1", "--recipe", "qdit-w4a8"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny-dit")


def test_search_and_deploy(model, tmp_path):
    plan, out = tmp_path / "plan", tmp_path / "out"
    said = succeed("search", model, *ARGUMENTS, "--trials", 6, "-o", plan)
    assert "best within the budget" in said and all(label in said for label in ("g = 32", "g = 64", "full row"))
    assert {p.name for p in plan.iterdir()} == {"journal.log", "plan.json", "trials.json", "front.png"}
    trials = json.loads((plan / "trials.json").read_text())["candidates"]
    assert len(trials) == 6 and all(len(t["errors"]) == 8 for t in trials)
    said = succeed("quantize", model, "--plan", plan, "-o", out)
    hashed = said.rpartition("(plan ")[2].strip(") \n")
    assert f"(plan {hashed})" in succeed("quantize", model, "--plan", plan, "-o", tmp_path / "again")
    assert saved(out) == saved(tmp_path / "again")

    best = json.loads((plan / "plan.json").read_text())["found"]
    scorer = Scorer(load_pipeline(str(model), torch.float32), list(range(8)), 0, {"steps": 1})
    scorer.see_truth()
    scorer.pipeline = load_pipeline(str(out), torch.float32)
    assert scorer.errors() == best["errors"], "what was saved is what was scored"


OLD_FORM = pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")


@OLD_FORM
def test_finalists_are_painted_again(model, tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    torch.jit.trace(Mean(), torch.zeros(1, 3, 32, 32)).save(tmp_path / "mean.pt")
    arguments = [*ARGUMENTS, "--groups", 64, "--trials", 3, "--finalists", 1, "--samples", 11]
    said = succeed("search", model, *arguments, "--features", tmp_path / "mean.pt", "-o", tmp_path / "plan")
    assert "Fréchet distance" in said
    data = json.loads((tmp_path / "plan" / "trials.json").read_text())
    affordable = {c["label"] or "mixed" for c in data["candidates"] if c["cost"]["total"] <= data["budget"]["total"]}
    finals = {final["name"]: final["distance"] for final in data["finalists"]}
    assert set(finals) == affordable >= {"full row"} and "g = 64" not in finals

    plain, coarse = (painted(tmp_path, model, rule) for rule in (None, "full row"))
    means = [np.stack([image.mean((0, 1)) / 127.5 - 1 for image in images]) for images in (plain, coarse)]
    (m1, c1), (m2, c2) = ((x.mean(0), np.cov(x.T)) for x in means)
    root = scipy.linalg.sqrtm(c1 @ c2).real
    assert finals["full row"] == pytest.approx(((m1 - m2) ** 2).sum() + np.trace(c1 + c2 - 2 * root), rel=1e-3)


def painted(place: Path, model: Path, label: str | None) -> list:
    """Paint the finalists' samples by other means: with the recipe of one group size, quantized by the engine."""
    pipeline = load_pipeline(str(model), torch.float32)
    if label is not None:
        quantize(pipeline, full_rows("qdit-w4a8"))
    conditions = [i % 8 for i in range(11)]
    options = {"seeds": SEED_DISTANCE, "steps": 1, "batch_size": 8, "progress": False}
    return generate(pipeline, conditions, **options).images


def full_rows(name: str) -> Recipe:
    rules = []
    for rule in Recipe.load(name).rules:
        if rule.activation is not None:
            token = replace(rule.activation, granularity="token", group_size=None)
            rule = replace(rule, weight=replace(rule.weight, group_size=None), activation=token)
        rules.append(rule)
    return Recipe("rows", tuple(rules))


@OLD_FORM
def test_a_network_sees_videos_as_channels_and_frames(tmp_path):
    class Shape(torch.nn.Module):
        def forward(self, x):
            return torch.tensor([x.shape[i] for i in range(x.dim())], dtype=torch.float32) + x.amax()

    torch.jit.script(Shape()).save(tmp_path / "shape.pt")
    seen = network_features(tmp_path / "shape.pt")([np.full((7, 5, 6, 3), 255, np.uint8)])
    assert (seen - 1).tolist() == [[1, 3, 7, 5, 6]]
    (tmp_path / "none.pt").write_text("none")
    with pytest.raises(DitQuantError, match="is no TorchScript network"):
        network_features(tmp_path / "none.pt")


def finished(journal: Path) -> int:
    """Count the candidates in a journal that have their values."""
    return journal.read_text().count('"state":1,"values":[')


def test_a_killed_search_goes_on(model, tmp_path):
    command = [*MODULE, "search", str(model), *ARGUMENTS, "-o", str(tmp_path / "plan"), "--trials"]
    journal = tmp_path / "plan" / "journal.log"
    worker = subprocess.Popen([*command, "10000"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + 100
        while time.time() < deadline and (not journal.exists() or finished(journal) < 5):
            time.sleep(0.1)
    finally:
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    before = journal.read_text()
    done = finished(journal)
    assert done >= 5
    refused(ditquant("quantize", model, "--plan", tmp_path / "plan", "-o", tmp_path / "out"), "has not ended")
    succeed("search", model, *ARGUMENTS, "--trials", done + 2, "-o", tmp_path / "plan")
    after = journal.read_text()
    assert after.startswith(before) and finished(journal) == done + 2
    assert (tmp_path / "plan" / "plan.json").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--budget", "100"], ["budget 100 cannot be reached: the smallest is"]),
        (["--groups", "48"], ["group size 48 divides no layer's width", "Divisors of 128: 8, 16, 32, 64, 128"]),
        (["--groups", "a"], ["group sizes 'a' are not allowed"]),
        (["--recipe", "rtn-w4a16"], ["quantizes no activation"]),
        (["--storage", "sqlite:////proc/none/study.db"], ["the storage sqlite:", "cannot be used"]),
        (["--storage", "postgresql+psycopg://me:secret@127.0.0.1:1/none"], ["cannot be used", "127.0.0.1:1"]),
        (["--trials", "0"], ["trials"]),
        (["--genes", "groups,bit"], ["gene 'bit'", "bits, format, groups, rotation"]),
        (["--latency", __file__], ["is no table of latencies"]),
        (["--finalists", "2"], ["finalists need a network: --inception for pictures, or --features"]),
        (["--features", "net.pt"], ["net.pt is for finalists. Give --finalists"]),
    ],
)
def test_what_is_refused_leaves_nothing(model, tmp_path, arguments, parts):
    run = ditquant("search", model, "--steps", 1, "--trials", 1, *arguments, "-o", tmp_path / "plan")
    refused(run, *parts)
    assert "secret" not in run.err
    assert list(tmp_path.iterdir()) == []


def test_a_label_outside_the_classes_is_refused(model, tmp_path):
    (tmp_path / "classes.txt").write_text("3\n1000\n")
    run = ditquant("search", model, "--prompts", tmp_path / "classes.txt", "-o", tmp_path / "plan")
    refused(run, "class label 1000 is not allowed. Choose an integer from 0 to 999")


def test_a_folder_of_something_else_is_refused(model, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    refused(ditquant("search", model, "-o", tmp_path), "exists. Choose another folder")
    refused(ditquant("search", model, "-o", tmp_path / "mine.txt"), "is a file")
    refused(ditquant("quantize", model, "--plan", tmp_path, "-o", tmp_path / "out"), "holds no plan.json")


@pytest.mark.skipif(os.getuid() == 0, reason="root may write anywhere")
def test_no_write_access(model, tmp_path):
    tmp_path.chmod(0o500)
    refused(ditquant("search", model, "-o", tmp_path / "plan"), "cannot write")


def test_a_plan_answers_the_other_options(model, tmp_path):
    run = ditquant("quantize", model, "--plan", tmp_path, "--recipe", "rtn-w4a8", "--steps", 3, "-o", tmp_path / "o")
    refused(run, "--plan holds recipe and calibration. Leave --recipe, --steps out")


@pytest.fixture(scope="module")
def postgres():
    """The address of a PostgreSQL server of its own, on a free port."""
    if not all(shutil.which(name) for name in ("initdb", "postgres")):
        pytest.skip("PostgreSQL is not installed")
    pytest.importorskip("psycopg")
    user = None
    if os.getuid() == 0:  # the server refuses to run as root
        import pwd

        user = next((u.pw_name for u in pwd.getpwall() if u.pw_name in ("postgres", "nobody")), None)
        if user is None:
            pytest.skip("PostgreSQL does not run as root, and there is no user for it")
    folder = Path(tempfile.mkdtemp(prefix="ditquant-postgres-"))
    server = None
    try:
        if user is not None:
            shutil.chown(folder, user)
        options = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
        subprocess.run(
            ["initdb", "-D", folder / "data", "-U", "tester", "-A", "trust", "-E", "UTF8", "--no-sync"],
            check=True,
            **options,
        )
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        arguments = ["-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder, "-F"]
        server = subprocess.Popen(["postgres", *arguments], **options | {"stderr": subprocess.DEVNULL})
        url = f"127.0.0.1:{port}/postgres"
        _wait_for(url, server)
        yield f"postgresql+psycopg://tester@{url}"
    finally:
        if server is not None:
            server.send_signal(signal.SIGINT)  # a fast shutdown
            server.wait(30)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for(url: str, server: subprocess.Popen) -> None:
    import psycopg

    for _ in range(200):
        assert server.poll() is None, "the server ended"
        try:
            psycopg.connect(f"postgresql://tester@{url}", connect_timeout=2).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")


def test_two_workers_share_a_study_on_postgres(model, tmp_path, postgres):
    import optuna

    trials = 14
    command = [*MODULE, "search", str(model), *ARGUMENTS, "--trials", str(trials)]
    command += ["--storage", postgres, "--study", "shared", "-o"]
    workers = [
        subprocess.Popen(
            [*command, str(tmp_path / f"plan{i}")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    for worker in workers:
        said = worker.communicate(timeout=200)
        assert worker.returncode == 0, said
    storage = optuna.storages.RDBStorage(postgres)
    done = [t for t in optuna.load_study(study_name="shared", storage=storage).trials if t.state.name == "COMPLETE"]
    storage.remove_session()
    storage.engine.dispose()
    assert trials <= len(done) <= trials + 1
    counts = [sum(t.user_attrs["worker"] == w for t in done) for w in {t.user_attrs["worker"] for t in done}]
    assert len(counts) == 2 and min(counts) >= 1, "both took part"
    shown = [json.loads((tmp_path / f"plan{i}" / "trials.json").read_text())["candidates"] for i in range(2)]
    assert all(entry in shown[-1] or entry in shown[0] for entry in shown[0] + shown[1])
    by_genome = {}
    for trial in done:  # equal candidates have equal errors, whoever scored them
        errors = by_genome.setdefault(tuple(sorted(trial.params.items())), trial.user_attrs["errors"])
        assert errors == trial.user_attrs["errors"]
    command[command.index("qdit-w4a8")] = "qdit-w3a8"
    other = subprocess.run([*command, tmp_path / "other"], capture_output=True, text=True, timeout=100)
    refused(Run(other.returncode, other.stdout, other.stderr), "study 'shared'", "is of another search (other recipe)")
