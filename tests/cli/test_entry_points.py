"""The installed command and `python -m ditquant`, as a shell sees them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ditquant.cli.app import COMMANDS
from ditquant.recipe import list_recipes

SCRIPT = Path(sys.executable).with_name("ditquant")
MODULE = [sys.executable, "-m", "ditquant"]


def shell(*words: str, **options) -> subprocess.CompletedProcess:
    return subprocess.run(words, capture_output=True, text=True, timeout=120, **options)


@pytest.mark.skipif(not SCRIPT.exists(), reason="the package is not installed beside this Python")
def test_the_installed_command():
    run = shell(str(SCRIPT), "recipes")
    assert run.returncode == 0 and run.stderr == ""
    assert set(list_recipes()) <= set(run.stdout.split())


def test_help_names_every_command():
    run = shell(*MODULE, "--help")
    assert run.returncode == 0 and all(name in run.stdout for name in COMMANDS)


def test_a_mistake_is_one_line(tmp_path):
    run = shell(*MODULE, "quantize", "no-such-model", "-o", str(tmp_path / "out"))
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr.startswith("error: unknown model") and run.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_option_is_answered_without_torch():
    code = (
        "import sys\nsys.argv = ['ditquant', 'quantize', '--foo']\nfrom ditquant.cli import main\n"
        "try:\n    main()\nexcept SystemExit as error:\n    assert error.code == 2\n"
        "assert not {'torch', 'diffusers', 'transformers'} & set(sys.modules)\n"
    )
    run = shell(sys.executable, "-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stderr == "error: No such option: --foo. See ditquant quantize --help.\n"


def test_a_reader_that_goes_away_is_no_error():
    run = subprocess.Popen([*MODULE, "env"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with run:
        run.stdout.close()
        errors = run.stderr.read()
    assert run.returncode == 1 and errors == ""


def test_data_free_quantizing_is_said(model, tmp_path):
    words = ("quantize", str(model), "--recipe", "lrq-w4a8", "-o", str(tmp_path / "out"))
    run = shell(*MODULE, *words, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0 and run.stderr.count("\n") == 1
    assert run.stderr.startswith("no calibration prompts: recipe 'lrq-w4a8' runs data-free")
