"""How far a set of pictures is from a reference set, by the features and classes that a network sees in them.

Fréchet distance: Heusel et al. 2017 (arXiv 1706.08500), equation 6. Inception Score: Salimans et al. 2016
(arXiv 1606.03498). Both depend on the network: numbers of one network mean nothing beside those of another.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from ditquant.errors import DitQuantError


def frechet_distance(features: Float[Tensor, "B F"], reference: Float[Tensor, "R F"]) -> float:
    """Return |m - m'|² + tr(C + C' - 2 (C C')^½) of means m and covariances C; 0 if they are equal.

    Biased upwards for few pictures: compare equal numbers of them, and more than there are features.

    Raises:
        DitQuantError: fewer than two pictures, other features, or values that are not finite.
    """
    for found in (features, reference):
        if found.ndim != 2 or len(found) < 2 or found.shape[1] != reference.shape[1]:
            raise DitQuantError(f"features must be [pictures, features] of at least two, got {tuple(found.shape)}.")
        if not bool(torch.isfinite(found).all()):
            raise DitQuantError("the features hold NaN or infinite values. Check the pictures.")
    (mean, covariance), (other_mean, other) = _moments(features), _moments(reference)
    # C C' and the symmetric C^½ C' C^½ have the same eigenvalues
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    cross = torch.linalg.eigvalsh(root @ other @ root).clamp(min=0).sqrt().sum()
    return float((mean - other_mean).square().sum() + covariance.trace() + other.trace() - 2 * cross)


def inception_score(logits: Float[Tensor, "B C"]) -> float:
    """Return exp(mean over pictures of KL(p(class | picture) || p(class))): 1 to the number of classes.

    Raises:
        DitQuantError: no pictures.
    """
    if logits.ndim != 2 or len(logits) == 0:
        raise DitQuantError(f"logits must be [pictures, classes] of at least one, got {tuple(logits.shape)}.")
    log_p = logits.double().log_softmax(1)
    log_mean = log_p.logsumexp(0) - torch.log(torch.tensor(len(logits), dtype=torch.float64))
    return float((log_p.exp() * (log_p - log_mean)).sum(1).mean().exp())


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    return features.double().mean(0), torch.cov(features.double().T).reshape(features.shape[1], -1)
