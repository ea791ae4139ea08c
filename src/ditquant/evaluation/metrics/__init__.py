"""Measures of how far pictures or latents are from the reference's."""

from ditquant.evaluation.metrics.base import METRICS, PairedMetric
from ditquant.evaluation.metrics.psnr import psnr_db
from ditquant.evaluation.metrics.sqnr import sqnr_db
from ditquant.evaluation.metrics.ssim import ssim
from ditquant.evaluation.metrics.video import flicker, warp_error

__all__ = ["METRICS", "PairedMetric", "flicker", "psnr_db", "sqnr_db", "ssim", "warp_error"]
