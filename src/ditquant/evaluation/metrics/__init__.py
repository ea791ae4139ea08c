"""Measures of how far pictures or latents are from the reference's."""

from ditquant.evaluation.metrics.base import METRICS, PairedMetric
from ditquant.evaluation.metrics.psnr import psnr_db
from ditquant.evaluation.metrics.sqnr import sqnr_db
from ditquant.evaluation.metrics.ssim import ssim

__all__ = ["METRICS", "PairedMetric", "psnr_db", "sqnr_db", "ssim"]
