"""A killed choice of bits goes on at the block where it was, and another budget measures nothing again."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file

from ditquant.auto import Clock, choose, offers
from ditquant.errors import DitQuantError
from ditquant.fitting import fit_layer
from tests.auto.test_choose import BASE
from tests.cli.command import ditquant as command
from tests.tiny import PROMPTS, run, tiny, tiny_pixart_pipeline

LAYERS, WAYS = 10, 2  # of a block, of a layer


class Killed(Exception):
    pass


@pytest.fixture
def fitted(monkeypatch):
    """Names of the layers that were fitted, once a way; `stop` makes the next but so many raise."""

    class Log(list):
        stop = None

    log = Log()

    def fit(linear, name, *rest):
        if len(log) == log.stop:
            raise Killed
        log.append(name)
        return fit_layer(linear, name, *rest)

    monkeypatch.setattr("ditquant.auto.ways.fit_layer", fit)
    monkeypatch.setattr("ditquant.auto.ways.offers", lambda rule: [offers(rule)[i] for i in (2, -1)])  # 4 and 8 bits
    return log


def chosen(work, bits=8.0, **options):
    return choose(tiny("pixart"), **{"bits": bits, "forward": run, "base": BASE, "work_dir": work} | options)


def killed(log, stop, *args, **options):
    log.stop = stop
    with pytest.raises(Killed):
        chosen(*args, **options)
    log.stop = None
    log.clear()


def equal(one, other):
    """With NaN equal to NaN; every digit counts."""
    return repr(one) == repr(other)


def recorded(model):
    pytest.fail("the calls are recorded")


def test_a_killed_choice_goes_on_at_its_block(fitted, tmp_path):
    truth = chosen(None)
    assert len(fitted) == 2 * LAYERS * WAYS
    fitted.clear()
    killed(fitted, 3 * WAYS, tmp_path)
    killed(fitted, (LAYERS + 4) * WAYS + 1, tmp_path, forward=recorded)
    assert equal(chosen(tmp_path, forward=recorded), truth) and len(fitted) == LAYERS * WAYS


def test_another_budget_is_spent_at_once(fitted, tmp_path):
    truth = chosen(None, 9.0)
    chosen(tmp_path)
    fitted.clear()
    assert equal(chosen(tmp_path, 9.0, forward=recorded), truth) and not fitted


def never(call, device):
    pytest.fail("layers of these shapes are timed")


def test_times_are_kept_too(fitted, tmp_path):
    """The clock of the run that goes on ticks differently: what was timed before stays."""
    ticks = iter(range(1, 1_000_000))
    clock = Clock(seconds=lambda call, device: next(ticks) * 1e-3)
    options = {"bits": None, "latency_ms": 1e9}
    killed(fitted, (LAYERS + 1) * WAYS, tmp_path, clock=clock, **options)
    later = Clock(seconds=never)
    found = chosen(tmp_path, clock=later, **options)
    assert later.table == clock.table and math.isfinite(found.chosen.ms)
    assert chosen(tmp_path, clock=Clock(seconds=never), **options) == found


@pytest.mark.parametrize("damage", ["{", "[]", '{"ways": [{}], "times": {}}', '{"ways": [], "times": {}}', None])
def test_a_damaged_file_is_measured_again(damage, fitted, tmp_path, capsys):
    truth = chosen(tmp_path)
    file = tmp_path / "ways" / "transformer_blocks.0.ff.net.2.json"
    if damage is None:
        file.unlink()
    else:
        file.write_text(damage)
    fitted.clear()
    assert equal(chosen(tmp_path), truth) and len(fitted) == 2 * LAYERS * WAYS
    assert (f"{file} is damaged" in capsys.readouterr().err) == (damage is not None)


def test_the_work_of_another_run_is_refused(fitted, tmp_path):
    chosen(tmp_path)
    with pytest.raises(DitQuantError, match=r"another run \(other seed\)"):
        chosen(tmp_path, seed=1)
    with pytest.raises(DitQuantError, match=r"another run \(other kind of budget\)"):
        chosen(tmp_path, bits=None, latency_ms=3.0)


def test_the_command_keeps_its_work_until_it_has_saved(tmp_path):
    tiny_pixart_pipeline().save_pretrained(tmp_path / "full")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:2]))
    words = ("quantize", tmp_path / "full", "--recipe", "auto", "--prompts", tmp_path / "prompts.txt", "--steps", 2)
    work = ("--work-dir", tmp_path / "work")
    run = command(*words, "--bits", 1, "-o", tmp_path / "none", *work)
    assert run.code == 2 and "a budget of 1 bits a weight is too small" in run.err
    kept = list((tmp_path / "work" / "ways").glob("*.json"))
    assert len(kept) == 2 * LAYERS and all(len(json.loads(file.read_text())["ways"]) == 9 for file in kept)
    assert command(*words, "--bits", 7, "-o", tmp_path / "resumed", *work).code == 0
    assert not (tmp_path / "work").exists()
    assert command(*words, "--bits", 7, "-o", tmp_path / "whole").code == 0
    one, other = (load_file(next((tmp_path / n / "transformer").glob("*.safetensors"))) for n in ("resumed", "whole"))
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)
