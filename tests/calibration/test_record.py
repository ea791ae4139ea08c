"""Which calls are recorded: evenly over the trajectory, both guidance branches, never more than asked for."""

import pytest
import torch
from torch import nn

import ditquant
from ditquant.calibration.record import empty_recording, record
from ditquant.calibration.store import TensorStore
from ditquant.errors import DitQuantError
from ditquant.models import family_of
from tests.tiny import PROMPTS, inputs, run, tiny, tiny_pixart_pipeline


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(2, 2)

    def forward(self, hidden_states):
        return self.fc(hidden_states)


class PixArtTransformer2DModel(nn.Module):
    """Something of that name, so that its blocks are known; fast enough for a thousand calls."""

    def __init__(self):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Block()])

    def forward(self, x):
        return self.transformer_blocks[0](x)


def chosen(total, max_calls, seed=0):
    model, store = PixArtTransformer2DModel(), TensorStore()
    recording = empty_recording(model, family_of(model), store)
    record({"": recording}, lambda: [model(torch.full((1, 2), float(i))) for i in range(total)], max_calls, seed)
    calls = recording.lists[0].calls
    for call, arguments in calls.items():
        assert float(store.get(arguments["hidden_states"])[0, 0]) == call
    assert store.memory_bytes == 8 * len(calls)
    return sorted(calls)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("total, max_calls", [(1000, 16), (100, 16), (80, 20), (33, 8)])
def test_calls_are_spread_over_the_trajectory_and_over_both_branches(total, max_calls, seed):
    calls = chosen(total, max_calls, seed)
    assert len(calls) == max_calls
    gaps = [b - a for a, b in zip([-1, *calls], [*calls, total], strict=True)]
    assert max(gaps) <= 2.7 * total / max_calls  # 2.62 is the golden bound
    first_branch = sum(call % 2 == 0 for call in calls)  # branches take turns
    assert max_calls / 4 <= first_branch <= 3 * max_calls / 4


def test_all_calls_are_kept_if_they_are_few():
    assert chosen(5, 16) == [0, 1, 2, 3, 4]
    assert chosen(50, 1) == chosen(50, 1)
    assert chosen(1000, 16, seed=0) != chosen(1000, 16, seed=1)


def test_wan_keeps_calls_with_and_without_the_prompt():
    """Its pipelines call the model once for each branch; the calls are told apart by the text."""
    model, store = tiny("wan"), TensorStore()
    recording = empty_recording(model, family_of(model), store)
    texts = [torch.full((1, 5, 24), float(sign)) for sign in (1, -1)]

    def steps():
        for step in range(20):
            for text in texts:
                run_with = inputs(model, batch=1, seed=step) | {"encoder_hidden_states": text}
                model(**run_with)

    record({"": recording}, steps, 8)
    kept = {arguments["encoder_hidden_states"].key for arguments in recording.lists[0].calls.values()}
    assert len(recording.lists[0].calls) == 8 and len(kept) == 2


def test_a_pipeline_records_at_most_max_calls(capsys):
    states = []
    for max_calls in (2, 2, 5):
        pipeline = tiny_pixart_pipeline()
        ditquant.quantize(pipeline, "lrq-w4a8", prompts=PROMPTS[:2], max_calls=max_calls)
        assert f"{max_calls} recorded calls" in capsys.readouterr().err
        states.append(pipeline.transformer.state_dict())
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert any(not torch.equal(states[0][key], states[2][key]) for key in states[0])


def test_a_recipe_that_needs_no_data_runs_nothing():
    ditquant.quantize(tiny("pixart"), "rtn-w4a8", forward=lambda model: pytest.fail("was run"))


@pytest.mark.parametrize("value", [0, -1, 1.5, True, None])
def test_max_calls_is_checked(value):
    with pytest.raises(DitQuantError, match="max_calls"):
        ditquant.quantize(tiny("pixart"), "lrq-w4a8", forward=run, max_calls=value)
