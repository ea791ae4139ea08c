"""A pipeline is called with what is wanted, then with what its model was trained for; the rest is its own."""

from types import SimpleNamespace

import pytest

from ditquant.errors import DitQuantError
from ditquant.pipelines.settings import TRAINED_FOR, settings_of


class Video:
    """A pipeline that names its settings as Wan's does."""

    def __init__(self, **trained_for):
        self.transformer = SimpleNamespace(config={TRAINED_FOR: trained_for} if trained_for else {})

    def __call__(self, prompt, height=480, width=832, num_frames=81, num_inference_steps=50, guidance_scale=5.0):
        pass


def test_nothing_wanted_is_left_to_the_pipeline():
    assert settings_of(Video(), steps=None, height=None) == {}
    assert settings_of(Video(), steps=4, frames=5) == {"num_inference_steps": 4, "num_frames": 5}


def test_what_the_model_was_trained_for_stands_in_for_nothing():
    pipeline = Video(height=64, width=48, frames=9, guidance=3.5)
    own = {"height": 64, "width": 48, "num_frames": 9, "guidance_scale": 3.5}
    assert settings_of(pipeline) == own
    assert settings_of(pipeline, steps=None, height=None, guidance=None) == own
    assert settings_of(pipeline, height=32, guidance=1.0) == own | {"height": 32, "guidance_scale": 1.0}


@pytest.mark.parametrize("option, value", [("height", -1), ("frames", 2.5), ("guidance", float("nan")), ("size", 3)])
def test_a_configuration_is_not_trusted(option, value):
    with pytest.raises(DitQuantError, match=rf"{option}.* (Choose|Allowed)"):
        settings_of(Video(**{option: value}))
