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


def with_gram(*pieces: torch.Tensor, seed: int = 0) -> LayerStats:
    stats = LayerStats(pieces[0].shape[-1], 32, seed, gram=True)
    for piece in pieces:
        stats.update(piece)
    return stats


def close_to(gram: torch.Tensor, x: torch.Tensor, tolerance: float = 1e-5) -> None:
    """Relative to the scale of each pair of channels."""
    exact = x.double().T @ x.double() / len(x)
    scale = exact.diagonal().sqrt()
    assert float(((gram.double() - exact) / scale / scale[:, None]).abs().max()) < tolerance


def test_there_is_no_gram_unless_it_is_asked_for():
    assert seen(some_rows(10)).gram is None
    assert seen(some_rows(10)).transformed(lambda x: x).gram is None


@given(cuts=st.lists(st.integers(0, 3000), max_size=6))
@settings(max_examples=20, deadline=None)
def test_the_gram_is_the_second_moment_however_the_stream_was_cut(cuts):
    x = some_rows(3000, 17)
    stats = with_gram(*x.tensor_split(sorted(cuts)))
    assert stats.gram.dtype == torch.float32 and stats.finite
    close_to(stats.gram, x)
    close_to(stats.gram, x)  # asking again changes nothing
    torch.testing.assert_close(stats.gram.diagonal(), stats.mean_square, rtol=1e-5, atol=0)


def test_a_long_stream_of_single_rows_loses_no_precision():
    x = torch.full((6000, 17), 0.1)
    close_to(with_gram(*x.split(1)).gram, x)


def test_rows_that_are_written_over_later_are_kept():
    x = some_rows(20, 5)
    kept, stats = x.clone(), with_gram(x)
    x.zero_()
    close_to(stats.gram, kept)


def test_merging_grams_equals_one_stream():
    a, b = some_rows(1500, 9, seed=1), some_rows(90, 9, seed=2)
    merged = with_gram(a, seed=1)
    merged.merge(with_gram(b, seed=2))
    close_to(merged.gram, torch.cat([a, b]))
    merged.update(a)
    close_to(merged.gram, torch.cat([a, b, a]))
    merged.merge(seen(b, size=32))
    assert merged.gram is None


def test_a_linear_map_takes_the_gram_of_all_rows_with_it():
    x, matrix = some_rows(3000), some_rows(63, seed=3)
    stats = with_gram(x).transformed(lambda rows: rows @ matrix)
    close_to(stats.gram, x.double() @ matrix.double())
    exact = (x.double() @ matrix.double()).square().mean(0).float()
    torch.testing.assert_close(stats.mean_square, exact, rtol=1e-4, atol=0)  # 32 rows of sample are far from that
    assert stats.count == 3000
    twice = stats.transformed(lambda rows: 2 * rows)
    close_to(twice.gram, 2 * x.double() @ matrix.double())
    assert twice.rms == pytest.approx(2 * stats.rms) and twice.layer_input.count == 3000


def test_a_gram_that_overflows_is_not_finite():
    x = torch.full((2, 3), 1.5e19)
    assert seen(x, x).finite
    stats = with_gram(*[x] * 600)
    assert len(stats.sample) == 32 and not stats.finite


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_are_seen_at_once_with_a_gram(value):
    x = some_rows(10)
    x[4, 2] = value
    assert not with_gram(x).finite
    assert not with_gram(some_rows(2000), x, some_rows(2000)).finite


def test_nothing_seen_is_an_empty_gram():
    stats = with_gram(torch.zeros(0, 4))
    assert stats.finite and not stats.gram.any()
