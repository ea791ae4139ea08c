"""Matrices by construction: orthonormal, flat, and Hadamard wherever that is possible."""

import numpy as np
import pytest
import torch

from ditquant.errors import DitQuantError
from ditquant.transforms.block_rotation import choose_block, rotate
from ditquant.transforms.hadamard_matrix import factors, flat_matrix, flatness, hadamard, is_hadamard

HADAMARD = [1, 2, 4, 8, 12, 20, 24, 28, 36, 40, 44, 72, 76, 96, 108, 112, 120, 128, 140, 256]
FLAT = [3, 5, 7, 9, 35, 52, 63, 70, 71, 100, 125, 250]


@pytest.mark.parametrize("order", HADAMARD)
def test_hadamard_is_orthonormal_with_equal_magnitudes(order: int):
    matrix = hadamard(order)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(order), atol=1e-12)
    np.testing.assert_allclose(np.abs(matrix), order**-0.5, rtol=1e-15)


@pytest.mark.parametrize("order", [2, 4, 16, 128])
def test_powers_of_two_are_sylvesters(order: int):
    parity = [[bin(i & j).count("1") % 2 for j in range(order)] for i in range(order)]
    np.testing.assert_allclose(hadamard(order), (1 - 2 * np.array(parity)) / order**0.5)


def test_constructions_reach_every_order_below_256_but_the_known_gaps():
    # these need prime powers or Williamson's matrices
    gaps = [52, 92, 100, 116, 156, 172, 184, 188, 232, 236, 244]
    assert [n for n in range(4, 256, 4) if not is_hadamard(n)] == gaps
    assert not any(is_hadamard(n) for n in range(3, 256) if n % 4)


@pytest.mark.parametrize("order", FLAT)
def test_other_orders_are_orthonormal_and_flat(order: int):
    matrix = flat_matrix(order)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(order), atol=1e-12)
    assert flatness(order) == pytest.approx(order * np.square(matrix).max())
    assert flatness(order) < 2
    with pytest.raises(DitQuantError, match=str(order)):
        hadamard(order)


@pytest.mark.parametrize("order", [1152, 3072, 4608, 8960, 13824, 15360, 1000, 2018])
def test_factors_multiply_to_the_order_and_are_small(order: int):
    split = factors(order)
    assert np.prod(split) == order
    assert all(d <= 256 for d in split) or order == 2018
    if order % 128 == 0:
        assert all(is_hadamard(d) for d in split) and len(split) == 2


def test_a_huge_prime_width_is_refused():
    with pytest.raises(DitQuantError, match="15361"):
        choose_block(15361, 128)


@pytest.mark.parametrize(
    ("width", "block"), [(1152, 128), (96, 96), (1120, 112), (1000, 125), (72, 72), (63, 63), (71, 71), (320, 80)]
)
def test_block_divides_the_width_and_spreads(width: int, block: int):
    assert choose_block(width, 128) == block
    assert choose_block(width, None) == width


def test_rotate_is_the_kronecker_product():
    x = torch.randn(5, 4608, dtype=torch.float64)
    a, b = (torch.tensor(flat_matrix(d)) for d in factors(4608))
    torch.testing.assert_close(rotate(x, 4608), torch.einsum("tij,ip,jq->tpq", x.view(5, len(a), -1), a, b).flatten(1))


def test_rotate_keeps_to_its_blocks():
    x = torch.zeros(1, 384)
    x[0, 130] = 1
    y = rotate(x, 128)
    assert (y[0, 128:256].abs() - 128**-0.5).abs().max() < 1e-7
    assert y[0, :128].eq(0).all() and y[0, 256:].eq(0).all()
