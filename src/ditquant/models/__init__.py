"""Model families: where the transformer blocks are and what their linear layers do."""

from ditquant.models import cogvideox, dit, flux, hunyuan_video, latte, pixart, sd3, wan
from ditquant.models.base import FAMILIES, BlockList, ModelFamily
from ditquant.models.coverage import Coverage, Layer, Skipped, find_linears, walk_blocks
from ditquant.models.generic import family_of, generic
from ditquant.models.roles import ROLES, guess_role
from ditquant.models.shapes import SHAPES, ModelShape, Product

__all__ = [
    "FAMILIES",
    "ROLES",
    "SHAPES",
    "BlockList",
    "Coverage",
    "Layer",
    "ModelFamily",
    "ModelShape",
    "Product",
    "Skipped",
    "cogvideox",
    "dit",
    "family_of",
    "find_linears",
    "flux",
    "generic",
    "guess_role",
    "hunyuan_video",
    "latte",
    "pixart",
    "sd3",
    "walk_blocks",
    "wan",
]
