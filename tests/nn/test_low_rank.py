"""The low-rank branch: what it adds, that it pays, and that it survives saving."""

import pytest
import torch
from torch import nn

import ditquant
from ditquant.errors import DitQuantError
from ditquant.nn import LowRank, QuantLinear
from ditquant.quantizers import QUANTIZERS
from ditquant.quantizers.low_rank import fit_low_rank, refit_low_rank
from ditquant.specs import WeightSpec
from ditquant.stats import LayerStats
from tests.tiny import run, tiny

SPEC = WeightSpec(4)
RECIPE = {
    "name": "svd",
    "rules": [
        {
            "target": "role:*",
            "weight": {"bits": 4},
            "quantizer": "rtn",
            "rank": 4,
            "transforms": [{"kind": "smooth"}, {"kind": "hadamard"}],
            "activation": {"bits": 8},
        }
    ],
}


def rtn(weight):
    return QUANTIZERS["rtn"](weight, SPEC)


def some_weight(rows=48, width=80, rank=3, noise=0.01):
    """A weight that is nearly of low rank, with entries that no per-row scale suits."""
    generator = torch.Generator().manual_seed(0)
    up, down, rest = (torch.randn(shape, generator=generator) for shape in ((rows, rank), (rank, width), (rows, width)))
    return up @ down + noise * rest


def loud_stats(width=80):
    stats = LayerStats(width)
    stats.update(torch.randn(256, width, generator=torch.Generator().manual_seed(1)) * torch.logspace(-1, 1, width))
    return stats


def error(weight, packed, down, up, size=1.0):
    return float(((weight - packed.dequantize() - up.float() @ down.float()) * size).square().sum())


@pytest.mark.parametrize("rows, width", [(48, 80), (63, 17), (5, 100)])
def test_a_weight_of_low_rank_is_held_by_the_branch(rows, width):
    weight = some_weight(rows, width, noise=0)
    packed, down, up = fit_low_rank(weight, 3, rtn)
    assert error(weight, packed, down, up) < 1e-6 * float(weight.square().sum())
    assert error(weight, packed, down, up) < error(weight, rtn(weight), down * 0, up) / 100


def test_more_turns_are_never_worse_and_help():
    weight = some_weight(noise=1.0)
    errors = [error(weight, *fit_low_rank(weight, 8, rtn, turns=turns)) for turns in (1, 2, 6)]
    assert errors[0] > errors[1] >= errors[2]


def test_the_split_is_best_where_the_inputs_are_loud():
    weight, stats = some_weight(noise=1.0), loud_stats()
    size = stats.mean_square.sqrt()
    plain, weighted = fit_low_rank(weight, 4, rtn), fit_low_rank(weight, 4, rtn, stats)
    assert error(weight, *weighted, size) < 0.9 * error(weight, *plain, size)


def test_it_is_near_the_best_factors_of_its_rank():
    """One turn takes the singular vectors of the weight: compare with a full decomposition."""
    weight = some_weight(noise=1.0)
    _, down, up = fit_low_rank(weight, 8, rtn, turns=1)
    values = torch.linalg.svdvals(weight.double())
    best = float(values[8:].square().sum())
    assert float((weight - up.float() @ down.float()).square().sum()) < 1.02 * best


def test_the_layer_computes_both_products():
    model = tiny("pixart")
    ditquant.quantize(model, RECIPE, forward=run)
    layer = next(m for m in model.modules() if isinstance(m, QuantLinear))
    assert layer.low_rank.up.dtype == torch.int16 and layer.plan.rank == 4
    x = torch.randn(3, 5, layer.in_features)
    y = layer.transform(x)
    scale = y.abs().amax(-1, keepdim=True) / 127
    by_hand = torch.round(y / scale) * scale @ layer.packed().dequantize().T + layer.bias
    torch.testing.assert_close(layer(x), by_hand + y @ layer.low_rank.product().T, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(layer(x), by_hand, rtol=1e-2, atol=1e-3)
    decoded = nn.functional.linear(x, layer.dequantize(), layer.bias)
    assert ((layer(x) - decoded).norm() / decoded.norm()).item() < 0.02  # the activations' rounding


def test_it_lowers_the_error_of_a_model():
    errors = []
    for rank in (0, 4):
        model = tiny("pixart")
        truth = run(model)
        rule = RECIPE["rules"][0] | {"rank": rank}
        ditquant.quantize(model, RECIPE | {"rules": [rule]}, forward=run)
        errors.append(float((run(model) - truth).norm()))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded_equal(tmp_path, dtype):
    model = tiny("pixart")
    ditquant.quantize(model, RECIPE, forward=run)
    model.save_pretrained(tmp_path)
    loaded = type(model).from_pretrained(tmp_path, torch_dtype=dtype)
    mine, theirs = ({k: v for k, v in m.state_dict().items() if "low_rank" in k} for m in (model, loaded))
    assert mine and all(torch.equal(mine[k], theirs[k]) for k in mine)
    if dtype == torch.float32:
        assert torch.equal(run(model), run(loaded))


def test_gradients_pass_through_the_branch():
    model = tiny("pixart")
    ditquant.quantize(model, RECIPE, forward=run)
    layer = next(m for m in model.modules() if isinstance(m, QuantLinear))
    x = torch.randn(3, layer.in_features, requires_grad=True)
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, layer.dequantize().sum(0).expand_as(x), rtol=1e-3, atol=1e-4)


def test_bad_ranks_and_factors_are_refused():
    with pytest.raises(DitQuantError, match="rank 49 is not allowed"):
        fit_low_rank(some_weight(), 49, rtn)
    with pytest.raises(DitQuantError, match="Choose at most 5"):
        LowRank.empty(5, 9, 6)
    with pytest.raises(DitQuantError, match=r"is too large for 'transformer_blocks\.0"):
        ditquant.quantize(tiny("pixart"), {"name": "x", "rules": [RECIPE["rules"][0] | {"rank": 999}]}, forward=run)
    factors = LowRank(torch.ones(2, 4), torch.ones(3, 2))
    factors.check("layer")
    factors.up.data[0, 0] = 0x7C00  # infinity
    with pytest.raises(DitQuantError, match=r"layer\.low_rank\.up"):
        factors.check("layer")


def correlated(size, seed):
    """A metric whose channels are correlated, of unequal strength."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=generator) * torch.logspace(-1, 0.5, size)
    return root @ root.T / size


def measured(rows=40, width=56, curved=True):
    """Statistics with a Gram, and with a curvature of the outputs."""
    stats = LayerStats(width, gram=True)
    root = torch.linalg.cholesky(correlated(width, 1) + 1e-3 * torch.eye(width))
    stats.update(torch.randn(400, width, generator=torch.Generator().manual_seed(2)) @ root.T)
    stats.curvature = correlated(rows, 3) if curved else None
    return stats


def felt(rest, down, up, stats):
    left = (rest - up.float() @ down.float()).double()
    curvature = torch.eye(len(left)) if stats.curvature is None else stats.curvature
    return float(((curvature.double() @ left @ stats.gram.double()) * left).sum())


@pytest.mark.parametrize("curved", [True, False])
def test_factors_are_fitted_again_to_what_the_prediction_feels(curved):
    stats = measured(curved=curved)
    rest = torch.randn(40, 56, generator=torch.Generator().manual_seed(4))
    plain = fit_low_rank(rest, 6, lambda w: QUANTIZERS["rtn"](w, WeightSpec(8)))[1:]
    again = refit_low_rank(rest, plain, stats)
    assert felt(rest, *again, stats) < 0.6 * felt(rest, *plain, stats)
    # Eckart and Young in the metric: no rank 6 leaves less than the squares of the singular values behind the sixth
    roots = [torch.linalg.cholesky(m.double()) for m in (stats.gram + 1e-6 * torch.eye(56),)]
    outputs = torch.eye(40).double() if not curved else torch.linalg.cholesky(stats.curvature.double())
    values = torch.linalg.svdvals(outputs.T @ rest.double() @ roots[0])
    assert felt(rest, *again, stats) < 1.2 * float(values[6:].square().sum())


def test_factors_that_cannot_be_better_stay():
    stats = measured()
    down, up = torch.randn(3, 56).half(), torch.randn(40, 3).half()
    rest = up.float() @ down.float()
    kept = refit_low_rank(rest, (down, up), stats)
    assert kept[0] is down and kept[1] is up
    huge = refit_low_rank(rest * 1e9, (down, up), stats)  # beyond half precision, whichever way they are balanced
    assert huge[0] is down and huge[1] is up
    assert refit_low_rank(rest, (down, up), None) == (down, up)
    assert refit_low_rank(rest, (down, up), loud_stats(56)) == (down, up)


def test_modulations_of_lrq_plus_have_a_branch_that_takes_their_error_back():
    """At 3 bits, on timesteps and classes that did not calibrate, beside the rounding of the other recipes."""

    def errors(recipe):
        full, model = tiny("dit"), tiny("dit")
        ditquant.quantize(model, recipe, forward=lambda m: [run(m, seed=seed) for seed in range(6)])
        found, seen = {}, {}
        for name, layer in full.named_modules():
            if name.endswith("norm1.linear"):
                layer.register_forward_hook(lambda _m, args, out, name=name: seen.update({name: (args[0], out)}))
        run(full, seed=50)
        for name, (x, y) in seen.items():
            layer = model.get_submodule(name)
            with torch.no_grad():
                found[name] = float((layer(x) - y).square().sum() / y.square().sum()), layer
        return found

    plain, mended = errors("lrq-gptq-w3a8"), errors("lrq-plus-lean-w3a8")
    assert set(plain) == set(mended) and len(plain) == 2
    for name in plain:
        assert plain[name][1].low_rank is None and mended[name][1].low_rank is not None
        assert mended[name][0] < 0.25 * plain[name][0]
