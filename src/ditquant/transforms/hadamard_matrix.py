"""Flat orthonormal matrices of any order by construction: Sylvester, Paley I and II, Kronecker products, Hartley.

A matrix is flat if it spreads one channel over all others: its largest squared entry is `flatness / order`. Hadamard
matrices reach flatness 1; the Hartley matrix cas(2 pi j k / m) / sqrt(m) stays below 2 and exists for every m.
"""

from functools import cache
from math import isqrt

import numpy as np

from ditquant.errors import DitQuantError

MAX_FACTOR = 256
MAX_DENSE = 4096


def divisors(n: int) -> list[int]:
    """All divisors in ascending order."""
    small = [d for d in range(1, isqrt(n) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, isqrt(n) + 1))


def _paley_prime(order: int) -> int:
    """The prime q of Paley I (order = q + 1) or II (order = 2 (q + 1)), 0 if there is none."""
    for q, residue in ((order - 1, 3), (order // 2 - 1, 1)):
        if order % 4 == 0 and q % 4 == residue and _is_prime(q):
            return q
    return 0


@cache
def is_hadamard(order: int) -> bool:
    """Say whether the constructions here reach a Hadamard matrix of this order."""
    if order in (1, 2) or _paley_prime(order):
        return True
    return order % 4 == 0 and any(is_hadamard(d) and is_hadamard(order // d) for d in divisors(order)[1:-1])


def _conference(q: int) -> np.ndarray:
    """The matrix [[0, 1], [+-1, Q]] of order q + 1 with Q_ij = Legendre symbol of i - j."""
    symbol = np.full(q, -1, dtype=np.int64)
    symbol[np.arange(1, q) ** 2 % q] = 1
    symbol[0] = 0
    matrix = np.ones((q + 1, q + 1), dtype=np.int64)
    matrix[0, 0] = 0
    matrix[1:, 0] = 1 if q % 4 == 1 else -1
    matrix[1:, 1:] = symbol[(np.arange(q)[:, None] - np.arange(q)) % q]
    return matrix


def _signs(order: int) -> np.ndarray:
    if order == 1:
        return np.ones((1, 1), dtype=np.int64)
    if order == 2:
        return np.array([[1, 1], [1, -1]])
    power_of_two = order & (order - 1) == 0
    q = 0 if power_of_two else _paley_prime(order)
    if q == order - 1:
        return np.eye(order, dtype=np.int64) + _conference(q)
    if q:
        pair, diagonal = np.array([[1, 1], [1, -1]]), np.array([[1, -1], [-1, -1]])
        return np.kron(_conference(q), pair) + np.kron(np.eye(q + 1, dtype=np.int64), diagonal)
    d = next(d for d in divisors(order)[1:-1] if is_hadamard(d) and is_hadamard(order // d))
    return np.kron(_signs(d), _signs(order // d))


@cache
def hadamard(order: int) -> np.ndarray:
    """Return the orthonormal Hadamard matrix, entries +-1/sqrt(order), read-only float64.

    Raises:
        DitQuantError: no construction reaches the order; `is_hadamard` tells before.
    """
    if order < 1 or not is_hadamard(order):
        raise DitQuantError(f"no Hadamard matrix of order {order} is constructed. Use flat_matrix({order}) instead.")
    return _frozen(_signs(order) / np.sqrt(order))


def hartley(order: int) -> np.ndarray:
    """Return cas(2 pi j k / order) / sqrt(order): symmetric, orthonormal, its own inverse."""
    angle = 2 * np.pi / order * (np.outer(np.arange(order), np.arange(order)) % order)
    return (np.cos(angle) + np.sin(angle)) / np.sqrt(order)


def _hadamard_part(order: int) -> int:
    return max(d for d in divisors(order) if is_hadamard(d))


@cache
def flat_matrix(order: int) -> np.ndarray:
    """Return the Hadamard matrix, or else the Kronecker product of Hartley's and the largest Hadamard factor."""
    part = _hadamard_part(order)
    return hadamard(order) if part == order else _frozen(np.kron(hartley(order // part), hadamard(part)))


@cache
def flatness(order: int) -> float:
    """Largest squared entry of `flat_matrix(order)` times the order: 1 for a Hadamard matrix, below 2 for any."""
    rest = order // _hadamard_part(order)
    angle = 2 * np.pi * np.arange(rest) / rest
    return float(np.square(np.cos(angle) + np.sin(angle)).max()) if rest > 1 else 1.0


@cache
def factors(order: int) -> tuple[int, ...]:
    """Split a rotation of this order into a Kronecker product of small dense factors.

    The flattest product wins, then the fewest factors, then the cheapest (its cost a channel is their sum).

    Raises:
        DitQuantError: a prime factor is above 4096.
    """
    options = [(order,)] if order <= MAX_FACTOR or _is_prime(order) else []
    options += [(d, *factors(order // d)) for d in divisors(order)[1:-1] if d <= MAX_FACTOR or _is_prime(d)]
    best = min(options, key=lambda f: (round(float(np.prod([flatness(d) for d in f])), 6), len(f), sum(f)))
    if max(best) > MAX_DENSE:
        raise DitQuantError(
            f"a width of {order} channels cannot be rotated as a whole: its prime factor {max(best)} is above "
            f"{MAX_DENSE}. Leave the rotation out for this layer."
        )
    return best


def _frozen(matrix: np.ndarray) -> np.ndarray:
    matrix.setflags(write=False)
    return matrix
