"""Handwritten digits: a classifier of their pictures, and the digits held out from training as the reference set.

The digits are scikit-learn's copy of the UCI optical recognition data (8 x 8 pixels, CC BY 4.0), enlarged to 32 x 32.
`zoo/train_dit_digits.py` trains the classifier and stores it with what it sees in the held-out digits, so that
measuring needs no data set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from ditquant.errors import DitQuantError

SIZE = 32
CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
FEATURES = 64
JUDGE = "judge.safetensors"


class DigitClassifier(nn.Module):
    """Two convolutions and two linear layers; the features are what the last one reads."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.hidden, self.out = nn.Linear(32 * 16, FEATURES), nn.Linear(FEATURES, len(CLASSES))

    def features(self, grey: Float[Tensor, "B 1 32 32"]) -> Float[Tensor, "B 64"]:
        """Return the features of grey pictures in [-1, 1]."""
        x = F.avg_pool2d(grey, 2)
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return F.relu(self.hidden(x.flatten(1)))

    def forward(self, grey: Float[Tensor, "B 1 32 32"]) -> Float[Tensor, "B 10"]:
        """Return the logits of the classes."""
        return self.out(self.features(grey))


@dataclass(frozen=True)
class Seen:
    """What the classifier sees in pictures."""

    features: Float[Tensor, "B 64"]
    logits: Float[Tensor, "B 10"]


@dataclass(frozen=True)
class Judge:
    """The classifier, and what it sees in the held-out digits, of which `labels` are the classes."""

    classifier: DigitClassifier
    reference: Seen
    labels: Int[Tensor, " R"]

    @staticmethod
    def load(path: str | Path | None = None) -> "Judge":
        """Read the judge of the shipped model, or of another file of the same kind."""
        return _shipped() if path is None else _read(Path(path))

    @torch.no_grad()
    def see(self, images: Sequence[UInt8[np.ndarray, "H W 3"]]) -> Seen:
        """Return features and logits of pictures.

        Raises:
            DitQuantError: pictures of another size.
        """
        for image in images:
            if image.shape != (SIZE, SIZE, 3):
                raise DitQuantError(f"a digit has {SIZE} x {SIZE} pixels of 3 channels, got {image.shape}.")
        grey = torch.from_numpy(np.stack(images)).float().mean(-1)[:, None] / 127.5 - 1
        features = self.classifier.features(grey)
        return Seen(features, self.classifier.out(features))


@cache
def _shipped() -> Judge:
    return _read(Path(str(resources.files("ditquant") / "assets" / "dit-digits" / JUDGE)))


def _read(path: Path) -> Judge:
    state = load_file(path)
    reference = Seen(state.pop("reference.features"), state.pop("reference.logits"))
    labels = state.pop("reference.labels")
    classifier = DigitClassifier()
    classifier.load_state_dict(state)
    return Judge(classifier.eval().requires_grad_(False), reference, labels)


def class_accuracy(logits: Float[Tensor, "B C"], labels: Sequence[int]) -> list[float]:
    """Return 1 for each picture that shows the class asked for, else 0."""
    return (logits.argmax(1) == torch.as_tensor(list(labels))).float().tolist()
