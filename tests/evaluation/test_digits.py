"""The shipped `dit-digits` writes the digits asked for, and its judge sees what stands in real digits."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ditquant import sources
from ditquant.errors import DitQuantError
from ditquant.evaluation.digits import CLASSES, SIZE, Judge, class_accuracy
from ditquant.evaluation.generate import generate
from ditquant.evaluation.metrics.distribution import frechet_distance, inception_score


@pytest.fixture(scope="module")
def judge():
    return Judge.load()


@pytest.fixture(scope="module")
def pipeline():
    return sources.load_pipeline("dit-digits", torch.float32)


def real(chosen) -> tuple[list[np.ndarray], np.ndarray]:
    """Digits of scikit-learn as pictures, and their classes."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    small = torch.from_numpy(data.images[chosen]).float()[:, None] / 8 - 1
    grey = F.interpolate(small, size=(SIZE, SIZE), mode="bicubic", align_corners=False).clamp(-1, 1)
    pictures = ((grey[:, 0, :, :, None].expand(-1, -1, -1, 3) + 1) * 127.5).round().byte().numpy()
    return list(pictures), data.target[chosen]


def test_the_judge_knows_the_digits_that_were_held_out(judge):
    """The order that held them out is drawn again from its seed."""
    held_out = np.random.default_rng((0, 0)).permutation(1797)[:497]
    pictures, labels = real(held_out)
    seen = judge.see(pictures)
    assert judge.labels.tolist() == labels.tolist()
    assert np.mean(class_accuracy(seen.logits, labels)) > 0.98
    # pictures have 8 bits, the stored features were taken before rounding
    torch.testing.assert_close(seen.features, judge.reference.features, rtol=0.05, atol=0.05)


def test_real_digits_are_nearer_to_the_reference_than_damaged_ones(judge):
    pictures, _ = real(np.random.default_rng((0, 0)).permutation(1797)[497:994])
    inverted = [255 - picture for picture in pictures]
    near, far = (frechet_distance(judge.see(p).features, judge.reference.features) for p in (pictures, inverted))
    assert near < far / 10
    assert inception_score(judge.see(pictures).logits) > 8


def test_accuracy_counts_the_class_asked_for():
    logits = torch.eye(10)[[3, 4, 5]]
    assert class_accuracy(logits, [3, 5, 5]) == [1, 0, 1]


def test_pictures_of_another_size_are_refused(judge):
    with pytest.raises(DitQuantError, match=r"a digit has 32 x 32 pixels of 3 channels, got \(16, 16, 3\)"):
        judge.see([np.zeros((16, 16, 3), np.uint8)])


def test_the_shipped_model_writes_what_is_asked_for(judge, pipeline):
    labels = list(range(10)) * 2
    made = generate(pipeline, labels, seeds=0, steps=12, guidance=1.5, batch_size=20, progress=False)
    assert np.mean(class_accuracy(judge.see(made.images).logits, labels)) >= 0.95
    by_name = generate(pipeline, list(CLASSES[:2]), seeds=0, steps=12, guidance=1.5, batch_size=2, progress=False)
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(by_name.images, made.images, strict=False))


def test_the_shape_of_the_shipped_model(pipeline):
    config = pipeline.transformer.config
    assert config.num_attention_heads * config.attention_head_dim == 384 and config.num_layers >= 4
    assert sources.stored_dtype(sources.find("dit-digits")) == torch.float16


@pytest.mark.parametrize("label", [10, "1000", -1, "ten"])
def test_labels_outside_the_classes_are_refused(pipeline, label):
    with pytest.raises(DitQuantError, match=r"(class label|unknown class).* from 0 to 9"):
        generate(pipeline, [label], seeds=0, progress=False)
