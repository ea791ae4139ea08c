"""The named shapes are the published models: their size, the width of their layers, the tokens that these see."""

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.models import SHAPES
from ditquant.models.shape_inputs import grid_of

BILLIONS = {  # as published; diffusers' DiT repeats the embeddings of step and class in every block (0.075)
    "dit-xl": 0.675 + 0.075,
    "pixart-xl": 0.61,
    "sd3-medium": 2.03,
    "flux-dev": 11.9,
    "cogvideox-5b": 5.57,
    "wan-14b": 14.29,
}
HIDDEN = {
    "dit-xl": 1152,
    "pixart-xl": 1152,
    "sd3-medium": 1536,
    "flux-dev": 3072,
    "cogvideox-5b": 3072,
    "wan-14b": 5120,
}
SEQUENCE = {  # of the longest sequence at the usual resolution
    "dit-xl": 256,
    "pixart-xl": 1024,
    "sd3-medium": 4096,
    "flux-dev": 4608,
    "cogvideox-5b": 17776,
    "wan-14b": 32760,
}


@pytest.mark.parametrize("name", SHAPES)
def test_size_and_products_are_those_of_the_model(name):
    shape = SHAPES[name]
    model = shape.build(device="meta")
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(BILLIONS[name], rel=0.01)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    products = shape.products()
    assert max(p.tokens for p in products) == SEQUENCE[name]
    assert any((p.in_features, p.out_features) == (HIDDEN[name],) * 2 for p in products)
    longer = shape.products(tokens=36 * shape.grid[0], batch=2)
    assert [p.name for p in longer] == [p.name for p in products]
    assert max(p.tokens for p in longer) >= 2 * 36 * shape.grid[0]


def test_a_cut_model_has_values_and_runs():
    shape = SHAPES["dit-xl"]
    model, again = shape.build(1, torch.float32), shape.build(1, torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    with torch.no_grad():
        y = model(**shape.arguments(tokens=16, batch=2, dtype=torch.float32)).sample
    assert y.shape == (2, 8, 8, 8) and bool(y.isfinite().all()) and float(y.std()) > 0


def test_blocks_are_cut_in_proportion():
    assert SHAPES["flux-dev"].cut(4) == {"num_layers": 4, "num_single_layers": 8}
    with pytest.raises(DitQuantError, match="blocks 29 are not allowed for pixart-xl"):
        SHAPES["pixart-xl"].build(29)


def test_any_number_of_tokens_has_a_grid():
    assert grid_of(1024, (1, 64, 64)) == (1, 32, 32)
    assert grid_of(13 * 12, (13, 30, 45)) == (13, 3, 4)
    assert grid_of(17, (13, 30, 45)) == (1, 1, 17)
    with pytest.raises(DitQuantError, match="tokens 0 are not allowed"):
        grid_of(0, (1, 1, 1))
    with pytest.raises(DitQuantError, match="squares of tokens, not 2x4"):
        SHAPES["dit-xl"].arguments(tokens=8)
    with pytest.raises(DitQuantError, match="Did you mean 'flux-dev'"):
        SHAPES["flux"]
