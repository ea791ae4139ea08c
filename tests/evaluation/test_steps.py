"""Step SQNR: what a model predicts at the states of the reference's trajectory, recomputed by hand."""

from functools import partial

import numpy as np
import pytest
import torch

import ditquant
from ditquant.errors import DitQuantError
from ditquant.evaluation import generate
from ditquant.evaluation.steps import record, step_sqnr_db
from tests.tiny import PROMPTS, tiny_pixart_pipeline

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
SEEDS = [3, 8, 5]


def paint(pipeline, prompts=PROMPTS[:3], seeds=SEEDS, **options):
    return generate(pipeline, prompts, seeds=seeds, steps=2, progress=False, **options)


@pytest.fixture(scope="module")
def trajectory():
    pipeline = tiny_pixart_pipeline()
    return record(pipeline, 3, partial(paint, pipeline))


def test_calls_of_all_steps_with_both_guidance_branches(trajectory):
    assert [len(call.prediction) for call in trajectory.calls] == [6, 6]
    first, second = (call.kwargs["encoder_hidden_states"] for call in trajectory.calls)
    assert first is second  # the text is kept once


def test_an_equal_model_is_perfect(trajectory):
    assert step_sqnr_db(tiny_pixart_pipeline(), trajectory) == ([np.inf] * 3, [np.inf] * 2)


def test_values_by_hand(trajectory):
    pipeline = tiny_pixart_pipeline()
    ditquant.quantize(pipeline.transformer, "rtn-w4a16")
    by_prompt, by_step = step_sqnr_db(pipeline, trajectory)
    signal, noise = np.zeros((2, 3)), np.zeros((2, 3))
    for step, call in enumerate(trajectory.calls):
        with torch.no_grad():
            answer = pipeline.transformer(*call.args, **call.kwargs)[0]
        channels = call.prediction.shape[1]
        for row in range(6):
            truth = call.prediction[row].double().numpy()
            signal[step, row % 3] += (truth**2).sum()
            noise[step, row % 3] += ((truth - answer[row, :channels].double().numpy()) ** 2).sum()
    np.testing.assert_allclose(by_prompt, 10 * np.log10(signal.sum(0) / noise.sum(0)), rtol=1e-9)
    np.testing.assert_allclose(by_step, 10 * np.log10(signal.sum(1) / noise.sum(1)), rtol=1e-9)
    assert all(10 < value < 60 for value in by_prompt)


def test_a_prompt_does_not_depend_on_the_others_of_its_batch(trajectory):
    """The same prompt and seed, recorded alone."""
    pipeline = tiny_pixart_pipeline()
    alone = record(pipeline, 1, partial(paint, pipeline, [PROMPTS[1]], [8]))
    ditquant.quantize(pipeline.transformer, "rtn-w4a16")
    together = step_sqnr_db(pipeline, trajectory)[0][1]
    assert step_sqnr_db(pipeline, alone)[0][0] == pytest.approx(together, abs=0.05)


def test_fewer_bits_are_worse(trajectory):
    found = []
    for recipe in ("rtn-w8a8", "rtn-w4a8", "rtn-w3a8"):
        pipeline = tiny_pixart_pipeline()
        ditquant.quantize(pipeline.transformer, recipe)
        found.append(np.mean(step_sqnr_db(pipeline, trajectory)[0]))
    assert found[0] > found[1] + 3 > found[2] + 6


def test_recording_leaves_the_pipeline_as_it_was(trajectory):
    pipeline = tiny_pixart_pipeline()
    before = paint(pipeline).latents
    record(pipeline, 3, partial(paint, pipeline))
    assert not pipeline.transformer._forward_hooks and torch.equal(paint(pipeline).latents, before)


def test_a_nan_is_an_error_and_not_a_number(trajectory):
    pipeline = tiny_pixart_pipeline()
    with torch.no_grad():
        pipeline.transformer.proj_out.bias.fill_(torch.nan)
    with pytest.raises(DitQuantError, match="at call 0 is NaN"):
        step_sqnr_db(pipeline, trajectory)
