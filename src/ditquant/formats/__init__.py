"""What codes mean: bit packing, code books and their parameters."""

from ditquant.formats import affine, twin_log
from ditquant.formats.base import FORMATS, Format, PackedWeight, layout

__all__ = ["FORMATS", "Format", "PackedWeight", "affine", "layout", "twin_log"]
