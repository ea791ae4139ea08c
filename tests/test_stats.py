"""Statistics do not depend on how their stream was cut, and the sample is a fair one."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ditquant.stats import LayerStats


def some_rows(rows: int, width: int = 63, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * torch.logspace(-2, 1, width)


def seen(*pieces: torch.Tensor, size: int = 512, seed: int = 0) -> LayerStats:
    stats = LayerStats(pieces[0].shape[-1], size, seed)
    for piece in pieces:
        stats.update(piece)
    return stats


def same_numbers(a: LayerStats, b: LayerStats) -> None:
    assert a.count == b.count
    assert torch.equal(a.absmax, b.absmax)
    torch.testing.assert_close(a.sum_squares, b.sum_squares, rtol=1e-14, atol=0)
    torch.testing.assert_close(a.mean_square, b.mean_square, rtol=1e-7, atol=0)
    assert a.rms == pytest.approx(b.rms, rel=1e-14)


@given(cuts=st.lists(st.integers(0, 200), max_size=6))
@settings(max_examples=30, deadline=None)
def test_pieces_equal_the_whole(cuts):
    x = some_rows(200)
    pieces = x.tensor_split(sorted(cuts))
    whole, streamed = seen(x, size=32), seen(*pieces, size=32)
    same_numbers(whole, streamed)
    assert sorted(whole.sample.tolist()) == sorted(streamed.sample.tolist())


def test_the_numbers_are_those_of_numpy():
    x = some_rows(300)
    exact, stats = x.double().numpy(), seen(x.view(3, 100, 63))
    np.testing.assert_array_equal(stats.absmax.numpy(), np.abs(x.numpy()).max(0))
    np.testing.assert_allclose(stats.mean_square.numpy(), (exact**2).mean(0), rtol=1e-6)
    assert stats.rms == pytest.approx(np.linalg.norm(exact) / np.sqrt(exact.size), rel=1e-7)


def test_merging_equals_one_stream():
    a, b = some_rows(150, seed=1), some_rows(90, seed=2)
    merged = seen(a, size=64, seed=1)
    merged.merge(seen(b, size=64, seed=2))
    same_numbers(merged, seen(a, b, size=64))
    assert merged.sample.shape == (64, 63)
    rows = {tuple(r) for r in torch.cat([a, b]).tolist()}
    assert all(tuple(r) in rows for r in merged.sample.tolist())


@pytest.mark.parametrize("rows", [1, 20, 32, 33, 500])
def test_the_sample_is_a_subset_without_repetition(rows):
    x = some_rows(rows)
    sample = seen(*x.split(7), size=32).sample
    assert sample.shape == (min(rows, 32), 63)
    found = {tuple(r) for r in sample.tolist()}
    assert len(found) == len(sample)
    assert found <= {tuple(r) for r in x.tolist()}


def chi_square(draw_sample, rows: int, size: int, trials: int = 400) -> float:
    """Chi-square a degree of freedom of how often each row is drawn; near 1 if all are equally likely."""
    counts = torch.zeros(rows)
    for seed in range(trials):
        counts[draw_sample(seed).flatten().long()] += 1
    expected = trials * size / rows
    return float(((counts - expected) ** 2 / (expected * (1 - size / rows))).sum() / (rows - 1))


def test_the_sample_is_uniform():
    x = torch.arange(60.0)[:, None]
    assert 0.4 < chi_square(lambda seed: seen(*x.split([5, 20, 35]), size=10, seed=seed).sample, 60, 10) < 1.7


def test_the_merged_sample_is_uniform_whatever_the_sizes():
    x = torch.arange(60.0)[:, None]

    def draw_sample(seed: int) -> torch.Tensor:
        merged = seen(x[:45], size=16, seed=2 * seed)
        merged.merge(seen(x[45:], size=10, seed=2 * seed + 1))
        return merged.sample

    assert 0.4 < chi_square(draw_sample, 60, 10) < 1.7


def test_seeds_repeat_and_differ():
    x = some_rows(400)
    assert torch.equal(seen(x, size=16, seed=3).sample, seen(x, size=16, seed=3).sample)
    assert not torch.equal(seen(x, size=16, seed=3).sample, seen(x, size=16, seed=4).sample)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_bad_values_are_seen(value):
    x = some_rows(10)
    assert seen(x).finite
    x[4, 2] = value
    assert not seen(some_rows(10), x, some_rows(10)).finite


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_summed_in_full(dtype):
    x = some_rows(3000, 5).to(dtype)
    np.testing.assert_allclose(seen(x).mean_square.numpy(), (x.double() ** 2).mean(0).numpy(), rtol=1e-6)


def test_nothing_seen_is_no_error():
    stats = seen(torch.zeros(2, 0, 63))
    assert (stats.count, stats.rms, len(stats.sample)) == (0, 0.0, 0)
    assert stats.finite
    assert not stats.mean_square.any()


def test_transformed_statistics_are_those_of_the_transformed_sample():
    stats = seen(some_rows(100))
    doubled = stats.transformed(lambda x: 2 * x)
    torch.testing.assert_close(doubled.mean_square, 4 * stats.mean_square)
    torch.testing.assert_close(doubled.absmax, 2 * stats.absmax)
    assert doubled.count == 100
