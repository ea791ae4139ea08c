"""A measurement tells the truth about errors and sizes, and no speed of what is wrong."""

import copy
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ditquant.bench import Subject, breakdown, dense, loading, measure, quantized
from ditquant.bench import elsewhere as elsewhere_module
from ditquant.bench.elsewhere import sdnq
from ditquant.bench.peers import Peer
from ditquant.errors import DitQuantError
from ditquant.kernels import cpu
from ditquant.nn import QuantLinear, dequantize_model
from tests.tiny import inputs, tiny

PEERS = sys.modules["ditquant.bench.peers"]
PARTS = sys.modules["ditquant.bench.parts"]
ATTENTION = sys.modules["ditquant.bench.attention_time"]
built = pytest.mark.skipif(cpu.why_not() is not None, reason=str(cpu.why_not()))


@pytest.fixture
def subject() -> Subject:
    model = tiny("pixart").bfloat16().eval()
    arguments = {key: value for key, value in inputs(model).items() if key != "return_dict"}
    return Subject(model, arguments, {"model": "tiny"})


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def spoil(model: nn.Module) -> None:
    model.proj_out.bias.fill_(float("nan"))


def break_down(model: nn.Module) -> None:
    raise ValueError("it does not work here\nsecond line")


def negate(model: nn.Module) -> None:
    model.proj_out.weight.neg_()
    model.proj_out.bias.neg_()


def test_rows_are_those_of_who_took_part(subject, monkeypatch):
    fakes = {
        "fake": Peer("torch", negate),
        "absent": Peer("no_such_package", negate),
        "absent part": Peer("no_such_package.part", negate),
        "broken": Peer("torch", break_down),
        "spoilt": Peer("torch", spoil),
    }
    monkeypatch.setattr(PEERS, "PEERS", fakes)
    said: list[str] = []
    found = measure(subject, ["rtn-w4a8"], ("memory", "speed"), 1, parts=False, tell=said.append)
    rows = found["model"]
    assert list(rows) == ["bfloat16", "rtn-w4a8, memory", "rtn-w4a8, speed", "fake"]
    assert found["left_out"] == {
        "absent": "no_such_package is not installed",
        "absent part": "no_such_package.part is not installed",
        "broken": "ValueError: it does not work here",
        "spoilt": "its output is not finite",
    }
    assert rows["bfloat16"]["ratio"] == rows["bfloat16"]["bytes_ratio"] == 1
    assert rows["rtn-w4a8, memory"]["bytes_ratio"] < rows["rtn-w4a8, speed"]["bytes_ratio"]
    assert rows["bfloat16"]["sqnr_db"] > rows["rtn-w4a8, memory"]["sqnr_db"] > 0
    assert rows["fake"]["sqnr_db"] == pytest.approx(-6, abs=0.2), "the error of -y is twice y"
    assert all(row["ms"] > 0 for row in rows.values())
    assert found["subject"] == {"model": "tiny"} and found["rounds"] == 1 and said


def test_ours_compiled_are_told_beside_the_eager_ones(subject, monkeypatch):
    made = []

    def compile_(model):
        if len(made) == 2:
            raise RuntimeError("no compiler here\nsecond line")
        made.append(model)
        return lambda **arguments: model(**arguments)

    monkeypatch.setattr(torch, "compile", compile_)
    found = measure(subject, ["rtn-w4a8"], ("memory", "speed"), 1, with_peers=False, compile=True)
    rows = found["model"]
    names = ["bfloat16", "rtn-w4a8, memory", "rtn-w4a8, speed", "bfloat16, compiled", "rtn-w4a8, memory, compiled"]
    assert list(rows) == names and made[0] is subject.model
    assert found["left_out"] == {"rtn-w4a8, speed, compiled": "RuntimeError: no compiler here"}
    for name in names[3:]:
        eager = rows[name.removesuffix(", compiled")]
        assert {key: rows[name][key] for key in ("held_mb", "file_mb", "sqnr_db")} == {
            key: eager[key] for key in ("held_mb", "file_mb", "sqnr_db")
        }
        assert "parts" not in rows[name]


def test_a_quantized_model_is_measured_against_what_it_decodes_to(subject):
    first = dense(subject)
    (made,) = quantized(subject, "rtn-w8a8", ("memory",))
    stored = Subject(made.model, subject.arguments, {})
    decoded = dense(stored)
    assert first.held_bytes >= decoded.held_bytes > made.held_bytes
    assert torch.equal(decoded.output, subject.call(dequantize_model(copy.deepcopy(made.model))))
    found = measure(stored, [None], ("memory",), 1, parts=False)
    assert list(found["model"]) == ["bfloat16", "as stored, memory"]


@built
@pytest.mark.parametrize("recipe", ["lrq-w4a8", "qdit", "svdquant", "rtn-w4a16"])
def test_the_parts_of_a_call_are_sound(subject, recipe):
    chosen = recipe
    if recipe in ("qdit", "svdquant"):  # their usual groups are wider than the tiny model
        weight = {"bits": 4, "group_size": 16, "symmetric": False}
        rule = {
            "target": "role:*",
            "weight": weight,
            "activation": {"bits": 8, "granularity": "group", "group_size": 8},
        }
        chosen = {"name": recipe, "rules": [rule | ({"rank": 4} if recipe == "svdquant" else {})]}
    (made,) = quantized(subject, chosen, ("memory",))
    parts = breakdown(made.model, subject, 1e6, 1)
    assert all(isinstance(value, float) for value in parts.values()), parts
    assert parts["attention"] > 0 and parts["rest"] > 0
    if recipe == "rtn-w4a16":
        assert parts["unquantized input"] > 0 and parts["product"] == 0
    else:
        assert parts["activation quantization"] > 0
    assert (parts["transform"] > 0) == (recipe == "lrq-w4a8")


@built
@pytest.mark.parametrize(
    "name, wrong",
    [("quantize", {"transform", "activation quantization"}), ("multiply", {"decode", "epilogue", "product"})],
)
def test_no_speed_of_an_operator_that_is_wrong(subject, name, wrong, monkeypatch):
    (made,) = quantized(subject, "lrq-w4a8", ("memory",))
    true = getattr(PARTS, name)

    def off(*args, **kwargs):
        found = true(*args, **kwargs)
        return (found[0] ^ 4, *found[1:]) if name == "quantize" else found * 1.1

    monkeypatch.setattr(PARTS, name, off)
    parts = breakdown(made.model, subject, 1e6, 1)
    assert {part for part, value in parts.items() if value == "wrong"} == wrong
    assert "rest" not in parts


@pytest.mark.skipif(cpu.why_not_attention() is not None, reason=str(cpu.why_not_attention()))
def test_no_speed_of_attention_that_is_wrong(subject, monkeypatch):
    (made,) = quantized(subject, "rtn-w4a8", ("memory",))
    true = ATTENTION.kernels.attention
    monkeypatch.setattr(ATTENTION.kernels, "attention", lambda *args, **kwargs: true(*args, **kwargs) * 1.1)
    assert breakdown(made.model, subject, 1e6, 1)["attention"] == "wrong"


def test_kinds_of_layers_are_counted_by_their_calls(subject):
    (made,) = quantized(subject, "rtn-w4a8", ("memory",))
    kinds = sys.modules["ditquant.bench.breakdown"]._kinds(made.model, subject)
    layers = [module for module in made.model.modules() if isinstance(module, QuantLinear)]
    assert sum(kind.calls for kind in kinds) == len(layers) > len(kinds)


WORKER = """
import sys, torch
folder, weights = sys.argv[1:3]
if weights == "int4":
    sys.exit("no int4 here")
arguments = torch.load(folder + "/arguments.pt")
torch.save(torch.zeros(2, 4, 8, 8), f"{folder}/{weights}.pt")
print(1000, 50, flush=True)
for line in sys.stdin:
    print(0.25, flush=True)
"""


def test_another_environment_times_its_own_calls(subject, monkeypatch, tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    monkeypatch.setattr(elsewhere_module, "WORKER", tmp_path / "worker.py")
    left_out: dict[str, str] = {}
    with sdnq(subject, Path(sys.executable), left_out) as found:
        (only,) = found
        assert (only.name, only.held_bytes, only.growth_bytes) == ("sdnq int8, integer products", 1000, 50)
        assert [only.run(), only.run()] == [0.25, 0.25]
        assert only.output.shape == (2, 4, 8, 8)
    assert left_out == {"sdnq int4, integer products": "no int4 here"}


def test_an_environment_without_sdnq_is_left_out(subject):
    left_out: dict[str, str] = {}
    with sdnq(subject, Path(sys.executable), left_out) as found:
        assert found == []
    assert set(left_out.values()) == {"ModuleNotFoundError: No module named 'sdnq'"}
    with pytest.raises(DitQuantError, match="is no Python that can be run"), sdnq(subject, Path("/nope"), {}):
        pass


def test_loading_in_a_new_process(subject):
    found = loading(subject.model, subject.arguments)
    assert 0 < found["load_s"] <= found["first_output_s"]
