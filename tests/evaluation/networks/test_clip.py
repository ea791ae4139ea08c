"""CLIPScore against transformers' own preparation and similarity, on a tiny random model in a local folder."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from ditquant.errors import DitQuantError
from ditquant.evaluation.networks.clip import Clip

SIDE = 24
TEXTS = ["a red cat", "a cat " * 20]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    letters = [c + end for c in "abcdefghijklmnopqrstuvwxyz" for end in ("", "</w>")]
    vocabulary = {token: i for i, token in enumerate([*letters, "<|startoftext|>", "<|endoftext|>"])}
    ends = {"bos_token_id": len(letters), "eos_token_id": len(letters) + 1, "pad_token_id": len(letters) + 1}
    text = {"vocab_size": len(vocabulary), "max_position_embeddings": 16, **ends, **small}
    config = CLIPConfig(
        text_config=text, vision_config={"image_size": SIDE, "patch_size": 8, **small}, projection_dim=8
    )
    path = tmp_path_factory.mktemp("clip")
    CLIPModel(config).save_pretrained(path)
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=16).save_pretrained(path)
    return path


def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*size, 3)).astype(np.uint8) for size in ((40, 64), (33, 24))]


def test_pictures_are_prepared_as_transformers_does(folder):
    processor = pytest.importorskip("transformers").CLIPImageProcessorPil(
        size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
    )
    for picture in pictures():
        expected = processor(Image.fromarray(picture), return_tensors="pt")["pixel_values"][0]
        assert torch.allclose(Clip.load(folder).prepared(picture), expected, atol=1e-5)


def test_scores_are_cosines_of_the_models_own_embeddings(folder):
    clip, model, tokenizer = Clip.load(folder), CLIPModel.from_pretrained(folder), CLIPTokenizer.from_pretrained(folder)
    pixels = torch.stack([clip.prepared(picture) for picture in pictures()])
    tokens = tokenizer(TEXTS, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        logits = model(pixel_values=pixels, **tokens).logits_per_image / model.logit_scale.exp()
    expected = [max(100 * float(logits[i, i]), 0) for i in range(2)]
    assert clip.scores(pictures(), TEXTS) == pytest.approx(expected, abs=1e-3) and max(expected) > 0
    frames = np.stack([pictures()[0]] * 3)
    assert clip.scores([frames], TEXTS[:1]) == pytest.approx(expected[:1], abs=1e-3)


def test_folders_that_hold_none_are_refused(tmp_path):
    with pytest.raises(DitQuantError, match="is no local CLIP model"):
        Clip.load(tmp_path)
