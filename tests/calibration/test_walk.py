"""An unquantized walk is the model, bit for bit; a quantized one shows each block what the quantized ones made."""

import copy

import pytest
import torch
from torch import nn

import ditquant
from ditquant import engine
from ditquant.calibration.record import can_walk, empty_recording, record
from ditquant.calibration.store import Ref, TensorStore
from ditquant.calibration.walk import Walk, problem_of
from ditquant.models import FAMILIES, family_of, walk_blocks
from ditquant.nn import QuantLinear
from ditquant.stats import LayerStats
from tests.tiny import TINY, run, tiny

WALKED = [name for name in TINY if can_walk(FAMILIES[name])]


def recorded(model, calls=3, max_calls=16):
    """Record forwards with different inputs."""
    recording = empty_recording(model, family_of(model), TensorStore())

    def forwards():
        for seed in range(calls):
            run(model, seed=seed)

    record({"": recording}, forwards, max_calls)
    return recording


def results(model, calls=3):
    """What every block returns in the model itself, by its name and the call."""
    seen = {name: [] for name, _ in walk_blocks(model, family_of(model))}
    handles = [
        block.register_forward_hook(lambda _b, _a, returned, name=name: seen[name].append(returned))
        for name, block in walk_blocks(model, family_of(model))
    ]
    for seed in range(calls):
        run(model, seed=seed)
    for handle in handles:
        handle.remove()
    return seen


def test_only_latte_is_not_walked():
    assert set(TINY) - set(WALKED) == {"latte"}


@pytest.mark.parametrize("name", WALKED)
def test_an_unquantized_walk_is_the_model(name):
    model = tiny(name)
    truth, recording = results(model), recorded(model)
    walk = Walk(recording)
    steps = 0
    with torch.no_grad():
        for step in walk.steps():
            walk.run(step, carry=True)
            steps += 1
            assert sorted(walk.carried) == [0, 1, 2]
            for call, values in walk.carried.items():
                expected = truth[step.name][call]
                expected = expected if isinstance(expected, tuple) else (expected,)
                for value, wanted in zip(values.values(), expected, strict=True):
                    assert (value is None and wanted is None) or torch.equal(walk.store.get(value), wanted), step.name
    assert steps == len(truth)
    assert problem_of(recorded(model)) == ""


@pytest.mark.parametrize("name", ["flux", "hunyuan_video"])
def test_the_second_list_goes_on_with_the_results_of_the_first(name):
    """Its recorded arguments hold no tensor of the full-precision model where the first list has made it."""
    recording = recorded(tiny(name))
    first, second = recording.lists
    for arguments in second.calls.values():
        assert not any(isinstance(arguments[output], Ref) for output in second.outputs)
    assert all(isinstance(arguments[output], Ref) for arguments in first.calls.values() for output in first.outputs)


@pytest.mark.parametrize("name", WALKED)
def test_equal_arguments_are_stored_once_and_freed_behind_the_walk(name):
    recording = recorded(tiny(name))
    walk = Walk(recording)
    before = recording.store.memory_bytes
    with torch.no_grad():
        for step in walk.steps():
            walk.run(step, carry=True)
    carried = sum(recording.store.get(v).nbytes for values in walk.carried.values() for v in values.values() if v)
    assert recording.store.memory_bytes == carried < before


class Controlled(nn.ModuleList):
    """Blocks between which the model adds something, as a ControlNet makes it do."""

    amount = 0.01

    def __iter__(self):
        return iter([lambda x, block=block, **kwargs: block(x + self.amount, **kwargs) for block in super().__iter__()])


class Shorter(nn.ModuleList):
    """Blocks of which the model runs only the first."""

    def __iter__(self):
        return iter(list(super().__iter__())[:1])


@pytest.mark.parametrize(
    "kind, reason", [(Controlled, "something else than in the model"), (Shorter, "was called 0 times")]
)
def test_a_model_that_does_not_simply_run_its_blocks_is_calibrated_in_one_pass(kind, reason, caplog):
    model, same = tiny("pixart"), tiny("pixart")
    for one in (model, same):
        one.transformer_blocks = kind(one.transformer_blocks)
    assert reason in problem_of(recorded(model))
    plan = ditquant.quantize(model, "lrq-w4a8", forward=run)
    assert "calibrating PixArtTransformer2DModel in one pass" in caplog.text and reason in caplog.text
    monkey = pytest.MonkeyPatch()
    monkey.setattr("ditquant.calibration.by_block.can_walk", lambda family: False)
    assert ditquant.quantize(same, "lrq-w4a8", forward=run).hash() == plan.hash()
    monkey.undo()
    states = model.state_dict(), same.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_an_addition_below_rounding_is_not_taken_for_another_model(monkeypatch):
    model = tiny("pixart")
    model.transformer_blocks = Controlled(model.transformer_blocks)
    monkeypatch.setattr(Controlled, "amount", 1e-7)
    assert problem_of(recorded(model)) == ""


def input_stats(model, layer):
    seen = LayerStats(model.get_submodule(layer).in_features)
    handle = model.get_submodule(layer).register_forward_pre_hook(lambda _m, args: seen.update(args[0]))
    run(model)
    handle.remove()
    return seen


@pytest.mark.parametrize("name", WALKED)
def test_every_block_sees_what_the_quantized_blocks_before_it_return(name, monkeypatch):
    """Statistics of the last block are those of a model whose blocks before it are quantized, to the last bit."""
    fitted = {}
    quantize_layer = engine.quantize_layer

    def spy(linear, layer, rule, stats, seed=0):
        fitted[layer.name] = stats.get(layer.name)
        return quantize_layer(linear, layer, rule, stats, seed)

    monkeypatch.setattr("ditquant.engine.quantize_layer", spy)
    model, before = tiny(name), tiny(name)
    ditquant.quantize(model, "lrq-w3a8", forward=run)
    last = [n for n, _ in walk_blocks(before, family_of(before))][-1]
    mixed = copy.deepcopy(model)
    for layer in [n for n in fitted if n.startswith(f"{last}.")]:
        assert isinstance(mixed.get_submodule(layer), QuantLinear)
        ditquant.nn.set_module(mixed, layer, before.get_submodule(layer))
    layer = next(n for n, seen in fitted.items() if n.startswith(f"{last}.") and seen and seen.count > 4)
    assert torch.equal(input_stats(mixed, layer).absmax, fitted[layer].absmax)
    assert not torch.equal(input_stats(before, layer).absmax, fitted[layer].absmax)
