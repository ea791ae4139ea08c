"""A file that cannot be an attention plan is refused."""

import pytest
from safetensors.torch import save_file

from ditquant.attention import load_plan, save_plan
from ditquant.errors import DitQuantError
from tests.attention.lies import honest_header, some_plan, write_lie


@pytest.mark.parametrize(
    "header",
    [
        "{",
        "[]",
        "7",
        "[" * 100_000,
        {"grid": []},
        {"grid": {"frames": 2, "height": 7}},
        {"grid": {"frames": 2, "height": 7, "width": -11}},
        {"grid": {"frames": 2, "height": 7, "width": 11, "depth": 1}},
        {"grid": {"frames": 10**6, "height": 10**6, "width": 10**6}},
        {"steps": 5},
        {"steps": [0, "1", 2]},
        {"steps": [[0], 1, 2]},
        {"density": None},
        {"extra": 1},
        {"version": "1"},
    ],
    ids=str,
)
def test_headers_that_lie_are_refused(tmp_path, header):
    plan, path = some_plan(), tmp_path / "lie.safetensors"
    if isinstance(header, dict):
        header = honest_header(plan, tmp_path) | header
    write_lie(path, header, orders=plan.orders, masks=plan.masks)
    with pytest.raises(DitQuantError, match="damaged"):
        load_plan(path)


def test_a_newer_version_is_named(tmp_path):
    plan, path = some_plan(), tmp_path / "new.safetensors"
    write_lie(path, {"version": 2, "something": "new"}, orders=plan.orders)
    with pytest.raises(DitQuantError, match=r"version 2, this ditquant reads up to 1. Update"):
        load_plan(path)


def test_missing_and_foreign_tensors_are_refused(tmp_path):
    plan, path = some_plan(), tmp_path / "lie.safetensors"
    header = honest_header(plan, tmp_path)
    for tensors in ({"masks": plan.masks}, {"orders": plan.orders, "masks": plan.masks, "more": plan.orders.clone()}):
        write_lie(path, header, **tensors)
        with pytest.raises(DitQuantError, match="it holds the tensors"):
            load_plan(path)
    save_file({"orders": plan.orders}, path)
    with pytest.raises(DitQuantError, match="no attention plan"):
        load_plan(path)
    with pytest.raises(DitQuantError, match="there is no"):
        load_plan(tmp_path / "nothing.safetensors")


def test_every_damaged_byte_is_noticed(tmp_path):
    save_plan(some_plan(bins=1, blocks=1, steps=(0,)), tmp_path / "plan.safetensors")
    good = (tmp_path / "plan.safetensors").read_bytes()
    path = tmp_path / "damaged.safetensors"
    for place in range(0, len(good), 5):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x11]) + good[place + 1 :])
        with pytest.raises(DitQuantError):
            load_plan(path)
    for end in (0, 7, 60, len(good) - 1):
        path.write_bytes(good[:end])
        with pytest.raises(DitQuantError, match="damaged"):
            load_plan(path)
    load_plan(tmp_path / "plan.safetensors")
