"""GPTQ beats plain rounding on its own Gram, and is plain rounding where nothing can be compensated."""

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.formats import FORMATS, PackedWeight
from ditquant.quantizers import DATA_FREE, NEEDS_GRAM, QUANTIZERS, reads_data
from ditquant.quantizers.gptq_factor import Factor, choose_factor, column_order
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats

gptq = QUANTIZERS["gptq"]
PLAIN = {"affine": QUANTIZERS["rtn"], "twin_log": QUANTIZERS["twin_log"]}


def some_weight(rows: int = 12, width: int = 63, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def seen(x: torch.Tensor) -> LayerStats:
    stats = LayerStats(x.shape[1], gram=True)
    stats.update(x)
    return stats


def some_inputs(width: int = 63, rows: int = 400, seed: int = 5) -> torch.Tensor:
    """Correlated, with some loud channels."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width // 4 + 1, width, generator=generator)
    x = torch.randn(rows, width // 4 + 1, generator=generator) @ mix + 0.5 * torch.randn(
        rows, width, generator=generator
    )
    return x * torch.exp(0.7 * torch.randn(width, generator=generator))


def independent(width: int = 63) -> LayerStats:
    """Inputs whose Gram is the identity, to the bit."""
    stats = seen(torch.eye(width))
    assert torch.equal(stats.gram * width, torch.eye(width))
    stats.count = 1
    stats._gram._sum, stats.sum_squares = torch.eye(width), torch.ones(width, dtype=torch.float64)
    return stats


def error(packed: PackedWeight, weight: torch.Tensor, stats: LayerStats) -> float:
    e = packed.dequantize().double() - weight.double()
    return float(((e @ stats.gram.double()) * e).sum())


def same_bits(a: PackedWeight, b: PackedWeight) -> None:
    assert torch.equal(a.codes, b.codes)
    assert all(torch.equal(a.params[name], b.params[name]) for name in b.params)


def textbook(weight: torch.Tensor, gram: torch.Tensor, spec: WeightSpec, scale: torch.Tensor) -> torch.Tensor:
    """The paper's loop as it is told first: one row, H⁻¹ shrinking by a column a step, in float64; symmetric affine."""
    half, rows = 2 ** (spec.bits - 1), weight.double().clone()
    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    inverse, out = torch.linalg.inv(damped), torch.zeros_like(rows)
    for k in range(rows.shape[1]):
        out[:, k] = (rows[:, k] / scale).round().clamp(-half, half - 1) * scale
        loss = (rows[:, k] - out[:, k]) / inverse[k, k]
        rows -= loss[:, None] * inverse[k]
        inverse = inverse - inverse[:, k : k + 1] @ inverse[k : k + 1] / inverse[k, k]
    return out


def test_it_is_the_loop_of_the_paper():
    weight, stats, spec = some_weight(), seen(some_inputs()), WeightSpec(4)
    packed = gptq(weight, spec, stats, order="natural", gain=False)
    expected = textbook(weight, stats.gram, spec, packed.params["scale"][:, 0].double())
    different = (packed.dequantize().double() - expected).abs() > 1e-5
    assert float(different.double().mean()) < 0.01  # a rounding of the other side of a tie starts another path
    assert not different[:, :20].any()


@pytest.mark.parametrize("width", [63, 1000])
@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
def test_the_output_error_is_less_than_that_of_plain_rounding(format_name, bits, width):
    weight, spec = some_weight(width=width), WeightSpec(bits, format_name)
    for seed in range(2 if width == 63 else 1):
        stats = seen(some_inputs(width, seed=seed))
        plain = error(PLAIN[format_name](weight, spec, stats), weight, stats)
        for order in ("natural", "activation", "best"):
            assert error(gptq(weight, spec, stats, order=order), weight, stats) < 0.7 * plain


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [9, 21])
@pytest.mark.parametrize("clip", [None, "mse"])
def test_groups_lose_less_than_plain_rounding(group_size, symmetric, clip):
    weight, stats = some_weight() + 0.3, seen(some_inputs())
    spec = WeightSpec(3, "affine", group_size, symmetric)
    plain = error(PLAIN["affine"](weight, spec, stats, clip=clip), weight, stats)
    assert error(gptq(weight, spec, stats, clip=clip), weight, stats) < 0.7 * plain


@pytest.mark.parametrize("group_size", [None, 9])
@pytest.mark.parametrize("bits", [2, 4, 5, 8])
@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
def test_independent_inputs_give_plain_rounding_to_the_bit(format_name, bits, group_size):
    weight, spec, stats = some_weight(), WeightSpec(bits, format_name, group_size), independent()
    ungained = {"gain": False} if format_name == "twin_log" else {}
    same_bits(gptq(weight, spec, stats, gain=False), PLAIN[format_name](weight, spec, stats, **ungained))
    mended = {} if format_name == "twin_log" else {"clip": "mse"}
    same_bits(gptq(weight, spec, stats, **mended), PLAIN[format_name](weight, spec, stats, **mended))


@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
def test_no_statistics_give_the_data_free_quantizer(format_name):
    weight, spec = some_weight(), WeightSpec(3, format_name)
    for stats in (None, LayerStats(63, gram=True), LayerStats(63)):
        same_bits(gptq(weight, spec, stats), PLAIN[format_name](weight, spec))
    same_bits(gptq(weight, WeightSpec(3), clip="mse"), PLAIN["affine"](weight, WeightSpec(3), clip="mse"))
    assert "gptq" in NEEDS_GRAM and "gptq" not in DATA_FREE


def test_what_reads_data():
    assert reads_data("gptq", {}) and reads_data("twin_log", {}) and reads_data("rtn", {"clip": "mse"})
    assert not reads_data("rtn", {}) and not reads_data("rtn", {"clip": None})


@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
@pytest.mark.parametrize("group_size", [None, 9, 21])
def test_the_block_size_changes_nothing_but_noise(format_name, group_size):
    weight, stats, spec = some_weight(), seen(some_inputs()), WeightSpec(4, format_name, group_size)
    first, *others = [gptq(weight, spec, stats, block_size=size) for size in (1, 5, 20, 63, 128)]
    for found in others:
        assert float((found.unpack() != first.unpack()).double().mean()) < 0.05
        assert error(found, weight, stats) == pytest.approx(error(first, weight, stats), rel=0.02)


@pytest.mark.parametrize("block_size", [1, 5, 128])
def test_a_group_is_settled_on_compensated_weights(block_size):
    weight, stats = some_weight(), seen(some_inputs())
    packed = gptq(weight, WeightSpec(4, group_size=21), stats, order="natural", block_size=block_size, gain=False)
    error_so_far = weight[:, :21] - packed.dequantize()[:, :21]
    damped = stats.gram.double()
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    # the best answer of the columns to come to the errors of those that are settled
    answer = torch.linalg.solve(damped[21:, 21:], damped[21:, :21]) @ error_so_far.double().T
    compensated = weight[:, 21:42] + answer.T[:, :21].float()
    torch.testing.assert_close(packed.params["scale"][:, 1], compensated.abs().amax(1) / 7, rtol=1e-3, atol=0)
    assert not torch.allclose(packed.params["scale"][:, 1], weight[:, 21:42].abs().amax(1) / 7, rtol=0.01)


def test_activation_order_takes_strong_channels_first_and_keeps_groups_together():
    power = torch.tensor([1.0, 5.0, 2.0, 9.0, 0.0, 3.0])
    assert column_order(power, 6, "activation").tolist() == [3, 1, 5, 2, 0, 4]
    assert column_order(power, 2, "activation").tolist() == [3, 2, 1, 0, 5, 4]
    assert column_order(power, 2, "natural").tolist() == list(range(6))


@pytest.mark.parametrize("group_size", [None, 9])
@pytest.mark.parametrize(("format_name", "clip"), [("affine", None), ("affine", "mse"), ("twin_log", None)])
def test_activation_order_is_natural_order_of_sorted_channels(format_name, clip, group_size):
    weight, x = some_weight(), some_inputs()
    spec = WeightSpec(3, format_name, group_size)
    order = column_order(seen(x).gram.diagonal(), group_size or 63, "activation")
    assert order.tolist() != list(range(63))
    found = gptq(weight, spec, seen(x), order="activation", clip=clip).dequantize()[:, order]
    sorted_first = gptq(weight[:, order], spec, seen(x[:, order]), order="natural", clip=clip).dequantize()
    assert float(((found - sorted_first).abs() > 1e-4).double().mean()) < 0.05


def test_the_best_order_foresees_less_error():
    gram = seen(some_inputs()).gram
    costs = {order: choose_factor(gram, 63, order, 0.01).cost for order in ("natural", "activation", "best")}
    assert costs["best"] == min(costs["natural"], costs["activation"]) < max(costs.values())


def test_the_factor_is_that_of_the_damped_gram():
    gram = seen(some_inputs()).gram
    damped = gram.double() + 0.01 * gram.double().diagonal().mean() * torch.eye(63, dtype=torch.float64)
    factor = Factor(gram, torch.arange(63), 0.01)
    upper = torch.linalg.cholesky(torch.linalg.inv(damped)).T
    torch.testing.assert_close(factor.share(), (upper / upper.diagonal()[:, None]).float(), rtol=1e-4, atol=1e-5)
    weights = upper.diagonal() ** -2
    torch.testing.assert_close(factor.error_weight(), (weights / weights.max()).float(), rtol=1e-5, atol=0)
    assert factor.cost == pytest.approx(float(weights.sum()), rel=1e-6)


@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
def test_the_gain_is_one_in_the_metric_of_the_gram(format_name):
    weight, stats = some_weight(), seen(some_inputs(rows=3000))  # the sample holds 512 of them
    for gain, deviation in ((True, 1e-4), (False, None)):
        found = gptq(weight, WeightSpec(2, format_name), stats, gain=gain).dequantize()
        measured = weight @ stats.gram
        away = ((found * measured).sum(1) / (weight * measured).sum(1) - 1).abs().max()
        assert (away < deviation) if gain else (away > 0.01)


@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
def test_equal_bits_on_two_runs(format_name):
    weight, spec = some_weight(), WeightSpec(3, format_name)
    same_bits(gptq(weight, spec, seen(some_inputs())), gptq(weight, spec, seen(some_inputs())))


@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
def test_dead_channels_are_rounded_and_disturb_nothing(format_name):
    x, weight, spec = some_inputs(), some_weight(), WeightSpec(4, format_name)
    x[:, [0, 17, 62]] = 0
    for damping in (0.0, 0.01):
        packed = gptq(weight, spec, seen(x), damping=damping)
        assert bool(torch.isfinite(packed.dequantize()).all())
        assert FORMATS[format_name].check(packed.params, spec) is None
        assert error(packed, weight, seen(x)) < 0.7 * error(PLAIN[format_name](weight, spec), weight, seen(x))
    found = gptq(weight, WeightSpec(8), seen(x), gain=False).dequantize()
    step = weight.abs().amax(1, keepdim=True) / 127
    assert bool(((found - weight)[:, [0, 17, 62]].abs() <= 0.501 * step).all())


@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
def test_inputs_that_are_all_zero_give_plain_codes(format_name):
    weight, stats, spec = some_weight(), seen(torch.zeros(5, 63)), WeightSpec(4, format_name)
    ungained = {"gain": False} if format_name == "twin_log" else {}
    same_bits(gptq(weight, spec, stats), PLAIN[format_name](weight, spec, **ungained))


@pytest.mark.parametrize("format_name", ["affine", "twin_log"])
def test_zero_rows_decode_to_zero(format_name):
    weight = some_weight()
    weight[3] = 0
    found = gptq(weight, WeightSpec(3, format_name), seen(some_inputs())).dequantize()
    assert not found[3].any() and bool(found[[0, 1, 2, 4]].any(1).all())


@pytest.mark.parametrize("kind", ["affine", "twin_log"])
def test_rows_are_independent(kind):
    weight, stats, spec = some_weight(), seen(some_inputs()), WeightSpec(3, kind)
    together, alone = gptq(weight, spec, stats), gptq(weight[4:5], spec, stats)
    assert float((together.dequantize()[4:5] - alone.dequantize()).abs().gt(1e-4).double().mean()) < 0.05


def test_statistics_that_cannot_be_used_are_refused():
    weight, spec = some_weight(), WeightSpec(3)
    without = LayerStats(63)
    without.update(some_inputs())
    with pytest.raises(DitQuantError, match=r"statistics without a Gram. Collect them with gram=True"):
        gptq(weight, spec, without)
    with pytest.raises(DitQuantError, match="statistics of 62 channels for a weight of 63"):
        gptq(weight, spec, seen(some_inputs()[:, :62]))
    with pytest.raises(DitQuantError, match=r"not positive definite with damping 0. Choose more, such as 0.01"):
        gptq(weight, spec, seen(torch.ones(5, 63)), damping=0)
    with pytest.raises(DitQuantError, match="clip 'mse' is for format 'affine', the spec asks for 'twin_log'"):
        gptq(weight, WeightSpec(3, "twin_log"), seen(some_inputs()), clip="mse")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_inputs_are_refused(value):
    x = some_inputs()
    x[3, 4] = value
    with pytest.raises(DitQuantError, match="NaN or infinite inputs"):
        gptq(some_weight(), WeightSpec(3), seen(x))
