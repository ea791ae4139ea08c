"""Pictures as PNG: whole for the folder, small for the page."""

import base64
import io

import numpy as np
from PIL import Image


def png(picture: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    """Return a PNG as text that stands in an image's `src`."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """Return a picture [H, W, 3] of at most `side` pixels a side; smaller ones as they are."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
