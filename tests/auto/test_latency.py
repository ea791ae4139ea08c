"""A budget of milliseconds: the least error of all choices that take no longer."""

import math
import random
from dataclasses import replace
from functools import cache, partial

import pytest
import torch
from torch import nn

import ditquant
from ditquant.auto import Clock, Way, check_budget, choose, descend, measure, spend
from ditquant.auto.clock import key
from ditquant.auto.front import by_time
from ditquant.engine import match
from ditquant.errors import DitQuantError
from ditquant.fitting import fit_layer
from ditquant.recipe import Recipe
from ditquant.rule import Rule
from ditquant.specs import ActSpec, TransformSpec, WeightSpec
from tests.auto.test_choose import BASE
from tests.cli.command import ditquant as command
from tests.cli.command import refused
from tests.tiny import run, tiny

RULE = Rule("x", WeightSpec(4))


def linear(width: int = 32, outputs: int = 24, seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(width, outputs).requires_grad_(False)


def quantized(layer: nn.Linear, bits: int, **rule):
    return fit_layer(layer, "layer", replace(RULE, weight=WeightSpec(bits), **rule), None)


class Machine:
    """A clock's seconds by the bits of what is called."""

    def __init__(self, seconds: dict[int, float]):
        self.seconds, self.called = seconds, []

    def __call__(self, call, device) -> float:
        assert call().shape[-1] == 24
        bits = call.func.plan.weight.bits if isinstance(call.func, ditquant.QuantLinear) else 16
        self.called.append(bits)
        return self.seconds[bits]


def test_layers_of_equal_shape_and_scheme_are_measured_once():
    machine = Machine({16: 0.004, 4: 0.002, 8: 0.003})
    clock = Clock(seconds=machine)
    first = clock.ms(linear(), [quantized(linear(), bits) for bits in (4, 8)], 10)
    assert first == pytest.approx([4, 2, 3]) and len(machine.called) == 10 * 3
    other = linear(seed=1)
    assert clock.ms(other, [quantized(other, bits) for bits in (4, 8)], 10) == first and len(machine.called) == 10 * 3
    machine.seconds, machine.called = {16: 0.008, 3: 0.001}, []  # slower now: what counts is the ratio
    again = clock.ms(other, [quantized(other, bits) for bits in (4, 3)], 10)
    assert again == pytest.approx([4, 2, 0.5]) and len(machine.called) == 10 * 2
    machine.seconds[4] = 0.001
    assert clock.ms(other, [quantized(other, bits) for bits in (4, 3)], 11)[0] == pytest.approx(8)
    assert len(clock.table) == 7


def test_what_the_machine_does_besides_only_adds():
    """Most calls are interrupted for longer than they take, each in turns of its own."""
    machine = Machine({16: 0.004, 4: 0.002})
    interrupted = random.Random(3)
    clock = Clock(seconds=lambda call, device: machine(call, device) + interrupted.choice([0, 0.01, 0.02, 0.03]))
    assert clock.ms(linear(), [quantized(linear(), 4)], 10) == pytest.approx([4, 2])


def test_no_layer_has_a_place_of_its_own_in_the_turns():
    machine = Machine({16: 1.0, 4: 1.0, 8: 1.0})
    Clock(seconds=machine).ms(linear(), [quantized(linear(), bits) for bits in (4, 8)], 10)
    turns = [machine.called[i : i + 3] for i in range(0, len(machine.called), 3)]
    assert all(sorted(turn) == [4, 8, 16] for turn in turns) and {turn[0] for turn in turns} == {4, 8, 16}


def test_a_key_tells_apart_whatever_takes_another_time():
    layer, token = linear(), ActSpec(8)
    keys = [key(layer, 10, torch.float32), key(layer, 10, torch.bfloat16), key(layer, 11, torch.float32)]
    keys += [key(linear(24, 32), 10, torch.float32), key(quantized(layer, 4), 10, torch.float32)]
    rules = [{"activation": token}, {"activation": ActSpec(4)}, {"activation": ActSpec(8, "group", 16)}]
    rules += [
        {"activation": replace(token, symmetric=False)},
        {"transforms": (TransformSpec("hadamard"),)},
        {"rank": 4},
    ]
    keys += [key(quantized(layer, 4, **rule), 10, torch.float32) for rule in rules]
    keys += [key(quantized(layer, 5), 10, torch.float32), key(twin_log(layer), 10, torch.float32)]
    assert len(set(keys)) == len(keys)
    assert key(linear(seed=3), 10, torch.float32) == keys[0]


def twin_log(layer):
    return fit_layer(layer, "layer", replace(RULE, weight=WeightSpec(4, "twin_log"), quantizer="twin_log"), None)


class Invented(Clock):
    """Milliseconds that follow from the bits: fewer are faster, floating point is slowest."""

    def ms(self, linear, made, rows):
        self.rows = getattr(self, "rows", set()) | {rows}
        per_bit = linear.weight.numel() / 1e4
        return [20 * per_bit, *(per_bit * (layer.plan.weight.bits + 1) for layer in made)]


@cache
def invented():
    model, clock = tiny("pixart"), Invented()
    matched = match(model, Recipe.load(BASE))
    with torch.no_grad():
        ways = measure("", model, matched, partial(run, model), 0, 16, clock)
    return clock, ways, sum(layer.parameters for layer, _ in matched)


def chosen(latency_ms):
    return spend(*invented()[1:], latency_ms=latency_ms)


def test_a_budget_is_kept_and_more_of_it_is_better():
    errors = []
    front = chosen(1e6).front
    for ms in (1.01 * front[0].ms, 3 * front[0].ms, 0.5 * front[-1].ms):
        found, model = chosen(ms), tiny("pixart")
        assert found.chosen in found.front == front and found.chosen.ms <= ms
        assert found.chosen.noise_db == min(p.noise_db for p in front if p.ms <= ms)
        truth = run(model)
        ditquant.quantize(model, found.recipe, forward=run)
        errors.append(float((run(model) - truth).norm()))
    assert errors == sorted(errors, reverse=True)
    assert [p.ms for p in front] == sorted(p.ms for p in front)
    assert front[-1].bits == 16 and front[-1].noise_db == -math.inf


def test_the_sum_is_that_of_the_layers_on_the_rows_of_a_call():
    found = chosen(30.0)
    assert invented()[0].rows == {2 * 16, 2 * 5}  # two pictures of 16 tokens, two texts of 5
    model, total = tiny("pixart"), 0.0
    for rule in found.recipe.rules:
        bits = 19 if rule.weight is None else rule.weight.bits
        total += (bits + 1) * model.get_submodule(rule.target).weight.numel() / 1e4
    assert found.chosen.ms == pytest.approx(total) and found.recipe.name == "auto-30ms"


def test_every_choice_on_the_way_is_the_best_of_its_time():
    layers = {
        "a": [Way(RULE, 9, 64.0, 1.0), Way(RULE, 1, 4.0, 3.0), Way(RULE, 2, 16.0, 2.0), Way(None, 8, 0.0, 2.5)],
        "b": [Way(RULE, 5, 8.0, 0.5), Way(RULE, 4, 7.5, 0.6), Way(RULE, 6, 1.0, 1.5), Way(None, 7, 0.0, 9.0)],
    }
    path = descend(layers, by_time)
    every = [(a.ms + b.ms, a.noise + b.noise) for a in layers["a"] for b in layers["b"]]
    for point in path:
        ms, noise = (sum(getattr(w, what) for w in point.values()) for what in ("ms", "noise"))
        assert noise == min(n for m, n in every if m <= ms)
    assert len(path) == 5 and path[-1]["b"].ms == 9.0


def test_floating_point_that_is_fastest_is_all_there_is():
    layers = {"a": [Way(None, 8, 0.0, 1.0), Way(RULE, 2, 5.0, 1.5)]}
    found = spend(layers, 4, latency_ms=2.0)
    assert len(found.front) == 1 and found.recipe.rules[0].weight is None and found.chosen.bits == 16


def test_the_real_clock_keeps_the_law():
    clock, options = Clock(), {"forward": run, "base": BASE}
    front = choose(tiny("pixart"), latency_ms=1e6, clock=clock, **options).front
    least, most = front[0].ms, front[-1].ms
    assert 0 < least <= most < math.inf and clock.table
    found = choose(tiny("pixart"), latency_ms=(least + most) / 2, clock=Clock(clock.table), **options)
    assert found.front == front  # nothing was measured again
    assert found.chosen.ms <= (least + most) / 2
    assert all(found.chosen.noise_db <= p.noise_db for p in front if p.ms <= (least + most) / 2)


def test_a_budget_that_cannot_be_reached_names_the_smallest_that_can():
    least = chosen(1e6).front[0].ms
    with pytest.raises(
        DitQuantError, match=r"budget of 0\.001 ms is too small.*take at least .* ms, and .* in full"
    ) as e:
        chosen(0.001)
    smallest = float(str(e.value).rpartition("at least ")[2].rstrip("."))
    assert chosen(smallest).chosen.ms == pytest.approx(least) and smallest < 1.01 * least


def test_without_a_budget_of_time_nothing_is_timed():
    found = choose(tiny("pixart"), 6.0, forward=run, base=BASE)
    assert math.isnan(found.chosen.ms)


@pytest.mark.parametrize("value", [0, -1.0, math.nan, math.inf, "4"])
def test_a_budget_is_a_positive_number(value):
    for budget in ((value, None), (None, value)):
        with pytest.raises(DitQuantError, match=r"is not allowed\. Choose a positive number"):
            check_budget(*budget)
    with pytest.raises(DitQuantError, match=r"is not allowed\. Choose a positive number"):
        choose(tiny("pixart"), latency_ms=value, forward=run, base=BASE)


def test_one_budget_is_given():
    with pytest.raises(DitQuantError, match="no budget is given"):
        choose(tiny("pixart"), forward=run, base=BASE)
    with pytest.raises(DitQuantError, match="two budgets are given"):
        choose(tiny("pixart"), 4.0, 3.0, forward=run, base=BASE)


def test_the_command_takes_one_budget(tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\n")
    words = ("quantize", "pixart-shapes", "-o", tmp_path / "out", "--prompts", prompts)
    auto = (*words, "--recipe", "auto")
    refused(command(*auto), "--recipe auto needs a budget", "--bits", "--latency")
    refused(command(*auto, "--bits", 4, "--latency", 3), "--bits and --latency are two budgets")
    refused(command(*words, "--recipe", "lrq-w4a8", "--latency", 3), "--latency is the budget of --recipe auto")
    for value in ("0", "-2", "nan", "inf"):
        refused(command(*auto, "--latency", value), "ms is not allowed. Choose a positive number")
        refused(command(*auto, "--bits", value), "bits a weight is not allowed. Choose a positive number")
    refused(command(*auto, "--latency", 3, "--max-memory", "4GiB"), "--max-memory is for one process")
