"""What the rotations are for: spreading outliers; and what damaged ones do."""

import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.transforms import DualRotation, FastDualRotation, Hadamard, Permute
from ditquant.transforms.dual_rotation import greedy_rotation
from ditquant.transforms.fake_quantize import token_sqnr_db
from ditquant.transforms.permute import snake
from ditquant.transforms.signs import draw_signs, pack_signs, unpack_signs
from tests.transforms.salient import salient, stats_of, weight


@pytest.mark.parametrize(("width", "block"), [(1152, 128), (72, 8), (1000, 125), (128, 128), (40000, 100)])
def test_snake_is_a_balanced_permutation(width: int, block: int):
    magnitude = torch.rand(width, generator=torch.Generator().manual_seed(0)).exp().pow(5)
    order = snake(magnitude, block).long()
    assert order.sort().values.equal(torch.arange(width))
    sums = magnitude[order].view(-1, block).sum(1)
    assert sums.max() - sums.min() <= magnitude.max()


def test_snake_deals_forth_and_back():
    assert snake(torch.tensor([6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), 2).tolist() == [0, 5, 1, 4, 2, 3]


@pytest.mark.parametrize("width", [1, 8, 63, 1152])
def test_signs_survive_packing(width: int):
    packed = draw_signs(width, torch.Generator().manual_seed(1))
    signs = unpack_signs(packed, width, torch.float32)
    assert signs.abs().eq(1).all() and packed.numel() == (width + 7) // 8
    assert pack_signs(signs).equal(packed)


def test_hadamard_spreads_a_single_outlier_evenly():
    x = torch.zeros(1, 1152)
    x[0, 700] = 100
    rotated = Hadamard.fit(weight(4, 1152), None, block=None, seed=3)(x)
    torch.testing.assert_close(rotated.abs(), torch.full_like(x, 100 / 1152**0.5))


@pytest.mark.parametrize("transform", [Hadamard, FastDualRotation, DualRotation])
def test_rotations_keep_norms_and_differ_by_seed(transform):
    x = salient(16, 384)
    one, two = (transform.fit(weight(4, 384), stats_of(x), seed=seed) for seed in (0, 1))
    torch.testing.assert_close(one(x).norm(dim=1), x.norm(dim=1))
    assert not torch.equal(one(x), two(x))


@pytest.mark.parametrize("width", [1152, 3072])
def test_dual_rotations_beat_block_hadamard_on_unseen_salient_tokens(width: int):
    w, stats, unseen = weight(4, width), stats_of(salient(256, width)), salient(256, width, draw=1)
    hadamard, fast, dual = (
        token_sqnr_db(t.fit(w, stats)(unseen), 4) for t in (Hadamard, FastDualRotation, DualRotation)
    )
    assert fast > hadamard + 1
    assert dual > hadamard


def test_greedy_rotation_is_orthogonal_and_shrinks_the_range():
    x = salient(64, 128).double()
    rotation = greedy_rotation(x, torch.Generator().manual_seed(0))
    torch.testing.assert_close(rotation @ rotation.T, torch.eye(128, dtype=torch.float64), atol=1e-12, rtol=0)
    y = x @ rotation
    assert y.max() - y.min() < (x.max() - x.min()) / 2


def test_greedy_rotation_leaves_alone_what_it_cannot_improve():
    x = torch.ones(4, 16).double()
    assert greedy_rotation(x, torch.Generator().manual_seed(0)).equal(torch.eye(16, dtype=torch.float64))


@pytest.mark.parametrize("transform", [FastDualRotation, DualRotation])
def test_zero_tokens_and_zero_layers_can_be_fitted(transform):
    x = salient(16, 256)
    x[3] = 0
    for sample in (x, torch.zeros(4, 256)):
        fitted = transform.fit(weight(4, 256), stats_of(sample))
        fitted.check("layer")
        assert fitted(sample).isfinite().all()


@pytest.mark.parametrize("transform", [Permute, FastDualRotation, DualRotation])
def test_damaged_permutations_are_refused(transform):
    for index, value in ((0, -1), (1, 256), (2, 32767)):
        fitted = transform.fit(weight(4, 256), stats_of(salient(8, 256)))
        fitted.permutation[index] = value
        with pytest.raises(DitQuantError, match=r"block\.3.*permutation"):
            fitted.check("block.3")
    fitted.permutation[2] = fitted.permutation[3]
    with pytest.raises(DitQuantError, match="every channel once"):
        fitted.check("block.3")


@pytest.mark.parametrize("value", [0.5, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["rotation1", "rotation2"])
def test_damaged_matrices_are_refused(name: str, value: float):
    fitted = DualRotation.fit(weight(4, 256), stats_of(salient(8, 256)))
    getattr(fitted, name).view(torch.float32)[3, 4] += value
    with pytest.raises(DitQuantError, match="not orthogonal"):
        fitted.check("block.3")


@pytest.mark.parametrize("transform", [Hadamard, FastDualRotation])
def test_bits_behind_the_last_channel_are_refused(transform):
    fitted = transform.fit(weight(4, 63), stats_of(salient(8, 63)))
    fitted.check("layer")
    next(p for n, p in fitted.named_parameters() if n.startswith("signs"))[-1] |= 128
    with pytest.raises(DitQuantError, match="behind channel 63"):
        fitted.check("layer")


def test_a_matrix_too_large_to_store_is_refused():
    with pytest.raises(DitQuantError, match="fast_dual_rotation"):
        DualRotation.empty(4096, block=4096)
