"""The finalists of `ditquant search`: what they are measured with, and the table of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ditquant.errors import DitQuantError

if TYPE_CHECKING:
    from ditquant.search.finalists import Final, Finals
    from ditquant.sources import Source


def read_finals(
    source: Source, count: int, samples: int, features: Path | None, inception: Path | None, real: Path | None
) -> Finals | None:
    """Return what finalists are measured with; None if there are to be none.

    Raises:
        DitQuantError: no network to look with, or one without finalists.
    """
    from ditquant.evaluation.digits import Judge
    from ditquant.evaluation.networks.found import pictures
    from ditquant.evaluation.networks.inception import Inception
    from ditquant.search.finalists import Finals, network_features

    given = [path for path in (features, inception, real) if path is not None]
    if not count:
        if given:
            raise DitQuantError(f"{given[0]} is for finalists. Give --finalists, how many there are to be.")
        return None
    if features is not None and inception is not None:
        raise DitQuantError("give either --features or --inception.")
    if features is not None:
        return Finals(network_features(features), None, samples, count)
    if inception is not None:
        network = Inception.load(inception)
        reference = None if real is None else network.features(pictures(real))
        return Finals(network.features, reference, samples, count)
    if real is not None:
        raise DitQuantError("--real is for --inception. Give its weights too.")
    if source.name != "dit-digits":
        raise DitQuantError("finalists need a network: --inception for pictures, or --features, a TorchScript one.")
    judge = Judge.load()
    return Finals(lambda images: judge.see(images).features, judge.reference.features, samples, count)


def show_finals(finals: Sequence[Final], budget: float) -> None:
    """Print the finalists, the least distance first."""
    from ditquant.cli.show import show
    from ditquant.evaluation import Column, Table

    columns = [
        Column("name", "finalist"),
        Column("distance", "Fréchet distance", ".4f"),
        Column("error", "relative error of final latents", ".5f"),
        Column("share", "cost of the budget", ".1%"),
    ]
    rows = []
    for final in finals:
        known = {"name": final.name, "distance": final.distance}
        if final.candidate is not None:
            known |= {"error": final.candidate.error, "share": final.candidate.cost.total / budget}
        rows.append(known)
    show(Table(columns, rows))
