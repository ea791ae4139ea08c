"""Feature networks from local files, and the metrics that need them."""

from ditquant.evaluation.networks.found import Networks

__all__ = ["Networks"]
