"""CLIPScore (Hessel et al. 2021) and features of pictures, by a CLIP model of transformers in a local folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ditquant.errors import DitQuantError, first_line
from ditquant.quiet import quiet_libraries

DEFAULT = "openai/clip-vit-base-patch32"  # in the cache of the hub
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Clip:
    """Pictures and texts in one space."""

    def __init__(self, model: Any, tokenizer: Any):
        self.model, self.tokenizer = model.eval(), tokenizer
        self.side = model.config.vision_config.image_size

    @staticmethod
    def load(path: str | Path | None = None) -> "Clip":
        """Load a folder, or the default from the cache; nothing is downloaded.

        Raises:
            DitQuantError: no CLIP model there.
        """
        from transformers import AutoTokenizer, CLIPModel

        options = {"local_files_only": True}
        where = str(path or DEFAULT)
        try:
            with quiet_libraries():
                model = CLIPModel.from_pretrained(where, use_safetensors=True, **options)
                return Clip(model.float(), AutoTokenizer.from_pretrained(where, **options))
        except Exception as error:  # whatever the libraries raise for files that are missing or something else
            raise DitQuantError(f"{where!r} is no local CLIP model: {first_line(error)}") from None

    @torch.no_grad()
    def features(self, image: UInt8[np.ndarray, "... H W 3"]) -> Float[Tensor, "B D"]:
        """Return a picture's embedding of unit length, one for each frame of a video."""
        frames = image.reshape(-1, *image.shape[-3:])
        pixels = torch.stack([self.prepared(frame) for frame in frames])
        return F.normalize(_embedding(self.model.get_image_features(pixel_values=pixels)), dim=-1)

    def prepared(self, picture: UInt8[np.ndarray, "H W 3"]) -> Float[Tensor, "3 S S"]:
        """Scale the shorter side, cut out the centre, and normalize, as CLIP was trained."""
        height, width = picture.shape[:2]
        scale = self.side / min(height, width)
        size = (max(self.side, int(width * scale)), max(self.side, int(height * scale)))
        scaled = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
        top, left = ((scaled.shape[i] - self.side) // 2 for i in (0, 1))
        centre = torch.tensor(scaled[top : top + self.side, left : left + self.side]).movedim(-1, 0) / 255
        return (centre - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)

    @torch.no_grad()
    def scores(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[float]:
        """Return 100 max(cos, 0) of each picture and its prompt, the mean over a video's frames.

        A prompt beyond the text model's length is cut.
        """
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=_length(self.model), return_tensors="pt"
        )
        texts = F.normalize(_embedding(self.model.get_text_features(**tokens)), dim=-1)
        pairs = zip(images, texts, strict=True)
        return [float(100 * (self.features(image) @ text).clamp(min=0).mean()) for image, text in pairs]


def _length(model: Any) -> int:
    return model.config.text_config.max_position_embeddings


def _embedding(output: Any) -> Tensor:
    """Newer versions of transformers wrap the embedding."""
    return output if isinstance(output, Tensor) else output.pooler_output
