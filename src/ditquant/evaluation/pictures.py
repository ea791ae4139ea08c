"""Pictures as PNG: whole for the folder, small for the page."""

import base64
import io

import numpy as np
from PIL import Image

PAGE_SIDE = 384  # the longest side of a picture on the page; the folder holds it whole


def png(picture: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3]."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def data_uri(data: bytes) -> str:
    """Return a PNG as text that stands in an image's `src`."""
    return "data:image/png;base64," + base64.b64encode(data).decode()


def page_picture(picture: np.ndarray) -> np.ndarray:
    """Return a picture of at most PAGE_SIDE pixels a side; of a video [F, H, W, 3] first, middle and last frame."""
    if picture.ndim == 4:
        chosen = sorted({0, len(picture) // 2, len(picture) - 1})
        picture = np.concatenate([picture[i] for i in chosen], axis=1)
    height, width = picture.shape[:2]
    scale = PAGE_SIDE / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
