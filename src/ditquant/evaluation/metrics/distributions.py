"""Distances between two sets of features: FID (Heusel et al. 2017) and KID (Binkowski et al. 2018)."""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.errors import DitQuantError

FID_SAMPLES = 1000  # fewer say more about the sample than about the model; its bias falls with their number
KID_SAMPLES = 50
_REAL = {"fid_real": FID_SAMPLES, "kid_real": KID_SAMPLES}


def fid(reference: Float[Tensor, "A D"], features: Float[Tensor, "B D"]) -> float:
    """Return |m1 - m2|² + Tr(C1 + C2 - 2 (C1 C2)^½) of means m and covariances C, with n - 1 in the denominator.

    It is biased upwards, so that only figures of equally many samples can be compared.

    Raises:
        DitQuantError: fewer than 1,000 samples in a set, or features that are not finite.
    """
    _check("FID", FID_SAMPLES, reference, features)
    return frechet_distance(reference, features)


def kid(reference: Float[Tensor, "A D"], features: Float[Tensor, "B D"]) -> float:
    """Return the unbiased squared MMD of the kernel (x·y / D + 1)³, over all pairs; about 0 for equal distributions.

    Raises:
        DitQuantError: fewer than 50 samples in a set, or features that are not finite.
    """
    _check("KID", KID_SAMPLES, reference, features)
    return squared_mmd(reference, features)


def check_real(metrics: Iterable[str], pictures: int) -> None:
    """Refuse too few real pictures for the metrics that are taken to them.

    Raises:
        DitQuantError: fewer than 1,000 for `fid_real`, or 50 for `kid_real`.
    """
    for metric in metrics:
        needed = _REAL.get(metric, 0)
        if pictures < needed:
            raise DitQuantError(
                f"{metric} needs at least {needed} real pictures, got {pictures}. Give a folder with more (--real)."
            )


def frechet_distance(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> float:
    """Return the squared Fréchet distance of the normal distributions with the sets' means and covariances."""
    x, y = x.double(), y.double()
    first, second = (torch.atleast_2d(torch.cov(z.T)) for z in (x, y))
    # C1 C2 is similar to the symmetric C1^½ C2 C1^½
    values, vectors = torch.linalg.eigh(first)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    mixed = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0).sqrt().sum()
    return float((x.mean(0) - y.mean(0)).square().sum() + first.trace() + second.trace() - 2 * mixed)


def squared_mmd(x: Float[Tensor, "A D"], y: Float[Tensor, "B D"]) -> float:
    """Return the U-statistic of the cubic kernel."""
    x, y = x.double(), y.double()

    def within(z: Tensor) -> Tensor:
        kernel = _kernel(z, z)
        return (kernel.sum() - kernel.trace()) / (len(z) * (len(z) - 1))

    return float(within(x) + within(y) - 2 * _kernel(x, y).mean())


def _kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _check(name: str, samples: int, *sets: Tensor) -> None:
    least = min(len(features) for features in sets)
    if least < samples:
        raise DitQuantError(f"{name} needs at least {samples} pictures, got {least}. Give more prompts.")
    if not all(bool(torch.isfinite(features).all()) for features in sets):
        raise DitQuantError(f"{name} got features that are NaN or infinite. Run the network in float32.")
