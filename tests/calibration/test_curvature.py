"""The curvature is that of the prediction's squared error, and measuring it leaves the model as it was."""

import pytest
import torch
from sklearn.covariance import ledoit_wolf_shrinkage

from ditquant.calibration.curvature import _Mean, curvatures
from ditquant.calibration.record import empty_recording, record
from ditquant.calibration.store import TensorStore
from ditquant.models import family_of, find_linears
from tests.tiny import run, tiny


def recorded(model, calls=3):
    recording = empty_recording(model, family_of(model), TensorStore())
    record({"": recording}, lambda: [run(model, seed=seed) for seed in range(calls)], whole=[""])
    return recording


def linears(model, *names):
    return {name: model.get_submodule(name) for name in names}


@pytest.mark.parametrize("name", ["dit", "flux", "sd3"])
def test_every_layer_of_a_family_has_one(name):
    model = tiny(name)
    layers = [layer.name for layer in find_linears(model).layers]
    found = curvatures(recorded(model), linears(model, *layers))
    assert set(found) <= set(layers) and len(found) > len(layers) // 2
    for layer, matrix in found.items():
        assert matrix.shape == (model.get_submodule(layer).out_features,) * 2
        assert torch.equal(matrix, matrix.T) and bool((matrix.diagonal() >= 0).all())


def test_it_foretells_what_a_disturbed_bias_does_to_the_prediction():
    """|J d|² summed over tokens and calls, for one direction d of the outputs, against finite differences."""
    model, name = tiny("pixart"), "transformer_blocks.1.attn1.to_out.0"
    recording = recorded(model)
    total = sum(curvatures(recording, linears(model, name), seed)[name] for seed in range(40)) / 40
    direction = torch.randn(32, generator=torch.Generator().manual_seed(3))
    layer, truth = model.get_submodule(name), [run(model, seed=seed) for seed in range(3)]
    felt = 0.0
    for token in range(16):  # one token at a time: the curvature adds their squares
        for sample in range(2):

            def disturb(_m, _a, output, token=token, sample=sample):
                output = output.clone()
                output[sample, token] += 1e-2 * direction
                return output

            handle = layer.register_forward_hook(disturb)
            changed = [run(model, seed=seed) for seed in range(3)]
            handle.remove()
            felt += sum(float((a - b).double().square().sum()) for a, b in zip(changed, truth, strict=True)) * 1e4
    assert float(direction @ total @ direction) == pytest.approx(felt, rel=0.25)


def test_the_model_stays_as_it_was():
    model, name = tiny("pixart"), "transformer_blocks.0.ff.net.2"
    model.proj_out.weight.requires_grad_(False)
    before, truth = {n: p.requires_grad for n, p in model.named_parameters()}, run(model)
    first, second = (curvatures(recorded(model), linears(model, name), 7)[name] for _ in range(2))
    assert torch.equal(first, second)
    assert {n: p.requires_grad for n, p in model.named_parameters()} == before
    assert torch.equal(run(model), truth) and all(p.grad is None for p in model.parameters())
    assert not model.get_submodule(name)._forward_hooks


def test_an_output_that_is_not_felt_has_none():
    model, name = tiny("pixart"), "transformer_blocks.1.ff.net.2"
    torch.nn.init.zeros_(model.proj_out.weight)
    assert curvatures(recorded(model), linears(model, name)) == {}


def test_it_is_shrunk_as_ledoit_and_wolf_say():
    """Against scikit-learn, whose variance divides by the count, not by one less."""
    rows = torch.randn(60, 20, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 20)
    mean = _Mean(20)
    for row in rows:
        mean.add(row[None])
    share = ledoit_wolf_shrinkage(rows.double().numpy(), assume_centered=True) * 60 / 59
    plain = rows.T @ rows / 60
    assert 0.1 < share < 0.9
    expected = (1 - share) * plain + share * plain.diagonal().mean() * torch.eye(20)
    torch.testing.assert_close(mean.shrunk(), expected.to(torch.float32), rtol=1e-4, atol=1e-6)


def test_parts_that_agree_are_left_alone():
    rows, mean = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)), _Mean(8)
    for _ in range(4):
        mean.add(rows)
    torch.testing.assert_close(mean.shrunk(), rows.T @ rows, rtol=1e-5, atol=1e-5)
