"""A registry answers like a dictionary, and an unknown name with what is close and allowed."""

import pytest

from ditquant.errors import DitQuantError
from ditquant.registry import Registry, unknown


def test_register_and_look_up():
    things: Registry[int] = Registry("thing")
    assert things.register("one")(1) == 1
    assert things["one"] == 1
    assert list(things) == ["one"]
    assert "two" not in things
    assert things.get("two") is None


def test_an_unknown_name_is_answered_in_one_line():
    things: Registry[int] = Registry("thing")
    things.update({"affine": 1, "twin_log": 2})
    with pytest.raises(DitQuantError) as caught:
        things["twinlog"]
    assert str(caught.value) == "unknown thing 'twinlog'. Did you mean 'twin_log'? Allowed: affine, twin_log."


def test_an_empty_registry_says_so():
    assert str(unknown("thing", "x", ())) == "unknown thing 'x'. Allowed: none."


def test_names_of_any_type_are_answered():
    assert str(unknown("thing", 3, ("a",))) == "unknown thing 3. Allowed: a."
