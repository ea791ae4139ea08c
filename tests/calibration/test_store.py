"""Recorded tensors: once if equal, on disk beyond the limit, gone afterwards; a full disk is one line."""

import errno
import os
import tempfile

import pytest
import torch

import ditquant
from ditquant.calibration.arguments import Carried, NotPlain, from_plain, to_plain
from ditquant.calibration.store import Ref, TensorStore
from ditquant.errors import DitQuantError
from ditquant.nn import QuantLinear
from tests.tiny import run, tiny

VALUES = [
    torch.randn(3, 5),
    torch.randn(3, 5).bfloat16(),
    torch.randn(4, 6).T[1:],
    torch.tensor(True),
    torch.arange(7),
    torch.zeros(0, 4),
    torch.view_as_complex(torch.randn(3, 2)),
]


@pytest.mark.parametrize("limit", [0, 70, 1 << 20])
def test_what_comes_out_is_what_went_in(limit):
    with TensorStore(limit) as store:
        refs = [store.put(value) for value in VALUES]
        for ref, value in zip(refs, VALUES, strict=True):
            got = store.get(ref)
            assert got.dtype == value.dtype and torch.equal(got, value)
        total = sum(value.nbytes for value in VALUES)
        assert store.memory_bytes + store.disk_bytes == total and store.memory_bytes <= limit
        store.drop(refs)
        assert store.memory_bytes == store.disk_bytes == 0


@pytest.mark.parametrize("limit", [0, 1 << 20])
def test_equal_tensors_are_kept_once_until_the_last_use_goes(limit):
    with TensorStore(limit) as store:
        x = torch.randn(8)
        one, two, other = store.put(x), store.put(x.clone()), store.put(x.view(2, 4))
        assert one == two != other and store.memory_bytes + store.disk_bytes == 64
        assert store.put(x, share=False) != one
        store.drop([one])
        assert torch.equal(store.get(two), x)
        store.drop([two])
        with pytest.raises((KeyError, OSError)):
            store.get(two)


def test_a_stored_tensor_cannot_be_written_to_from_outside():
    store, x = TensorStore(), torch.zeros(3)
    ref = store.put(x)
    x += 1
    store.get(ref).add_(1)
    assert not store.get(ref).any()


def test_arguments_survive_json():
    value = {"a": [1, 2.5, None, True, "x"], "b": (Ref("k"), {"c": Carried("hidden_states")})}
    back = from_plain(to_plain(value))
    assert back == value and type(back["b"]) is tuple and type(back["b"][1]["c"]) is Carried
    with pytest.raises(NotPlain):
        to_plain([object()])


def spilled():
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("ditquant-recorded-")]


def test_spilling_changes_no_bit_and_leaves_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    states = []
    for limit in (1 << 30, 20_000, 0):
        monkeypatch.setattr("ditquant.calibration.store.MEMORY_LIMIT", limit)
        model = tiny("flux")
        ditquant.quantize(model, "lrq-w4a8", forward=run)
        states.append(model.state_dict())
        assert not spilled()
    assert all(torch.equal(states[0][key], other[key]) for other in states[1:] for key in states[0])


def test_a_full_disk_is_one_line_and_changes_nothing(monkeypatch, tmp_path):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr("ditquant.calibration.store.MEMORY_LIMIT", 0)
    monkeypatch.setattr("ditquant.calibration.store.save_file", full)
    model = tiny("flux")
    with pytest.raises(DitQuantError, match=r"cannot write .*: No space left on device\. Free some space") as error:
        ditquant.quantize(model, "lrq-w4a8", forward=run)
    assert "\n" not in str(error.value) and not spilled()
    assert not any(isinstance(module, QuantLinear) for module in model.modules())
