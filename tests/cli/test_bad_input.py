"""Bad input: exit code 2, one line that says what is wrong and what is allowed, and nothing written."""

import errno
import os

import pytest
import torch
from diffusers import PixArtAlphaPipeline
from PIL import Image

from tests.cli.command import contents, ditquant, refuse, refused

Q = "quantize MODEL -o out"
G = "generate QUANTIZED -o fox.png --prompt x --steps 2"
C = "compare MODEL QUANTIZED --prompts two.txt -o out"
ALLOWED_MODELS = "Allowed: dit-digits, pixart-shapes, video-shapes"

ARGUMENTS = {
    "inspect nowhere": ("unknown model", "'nowhere'", ALLOWED_MODELS),
    "inspect pixart-shapse": ("'pixart-shapse'", "Did you mean 'pixart-shapes' or 'video-shapes'?"),
    "quantize ./none -o out": ("unknown model", "'./none'"),
    "generate nowhere --prompt x -o fox.png": ("unknown model", "'nowhere'"),
    "compare nowhere QUANTIZED --prompts two.txt -o out": ("unknown model", "'nowhere'"),
    "compare MODEL nowhere --prompts two.txt -o out": ("unknown model", "'nowhere'"),
    "inspect two.txt": ("'two.txt' is a file", "Give the folder"),
    "inspect empty": ("holds neither model_index.json nor config.json",),
    f"{Q} --recipe lrq-w4a9": ("unknown recipe 'lrq-w4a9'", "Did you mean", "lrq-w4a8"),
    "inspect MODEL --recipe lrq-w4a9": ("unknown recipe 'lrq-w4a9'", "Did you mean"),
    f"{Q} --recipe none.yaml": ("recipe file 'none.yaml' does not exist", "lrq-w4a8"),
    f"{Q} --recipe empty/": ("cannot be read: Is a directory",),
    f"{Q} --prompts none.txt": ("'none.txt': No such file or directory",),
    f"{Q} --prompts empty": ("'empty': Is a directory", "one prompt a line"),
    f"{Q} --dtype int8": ("unknown dtype 'int8'", "bfloat16", "float32"),
    f"{Q} --device meta": ("device 'meta' cannot be used",),
    f"{Q} --device gpu": ("device 'gpu' cannot be used", "Choose cpu or auto"),
    f"{Q} --device cuda:77": ("device 'cuda:77' cannot be used", "Choose cpu or auto"),
    f"{Q} --steps 2": ("steps, guidance and sizes are for calibration", "Give --prompts"),
    f"{Q} --prompts two.txt --frames 5": ("PixArtAlphaPipeline takes no frames", "Allowed: steps, guidance, height"),
    f"{Q} --prompts two.txt --height 33": ("does not take these settings", "divisible by 8"),
    f"{G} --guidance nan": ("guidance nan is not allowed", "finite"),
    f"{Q} --seed -1": ("'--seed'", "0"),
    f"{Q} --seed 99999999999999999999999": ("'--seed'",),
    f"{Q} --seed one": ("'--seed'", "integer"),
    "quantize QUANTIZED -o out": ("is quantized already", "Give the full-precision model"),
    "quantize MODEL/transformer -o out --prompts two.txt": ("single PixArtTransformer2DModel", "leave --prompts out"),
    "quantize MODEL/vae -o out": ("quantizes none of the model's",),
    "quantize MODEL/scheduler -o out": ("holds neither model_index.json nor config.json",),
    "quantize MODEL/text_encoder -o out": ("no model class of diffusers",),
    "quantize MODEL -o MODEL --overwrite": ("would replace", "Choose another place"),
    "quantize MODEL -o MODEL/.. --overwrite": ("would replace", "Choose another place"),
    "quantize MODEL -o MODEL/transformer --overwrite": ("would replace", "Choose another place"),
    "compare MODEL QUANTIZED --prompts two.txt -o QUANTIZED --overwrite": ("would replace", "Choose another place"),
    "generate QUANTIZED -o two.txt --prompts two.txt --overwrite": ("two.txt would replace two.txt",),
    "generate QUANTIZED -o full --prompts two.txt": ("full exists", "--overwrite"),
    "quantize MODEL -o full": ("full exists", "--overwrite"),
    "compare MODEL QUANTIZED --prompts two.txt -o full": ("full exists", "--overwrite"),
    "quantize MODEL -o two.txt": ("two.txt",),
    "quantize MODEL -o two.txt/out": ("Not a directory", "Choose another place"),
    "quantize MODEL -o . --overwrite": ("current or home folder",),
    f"generate QUANTIZED --prompt x -o {'x' * 300}.png": ("File name too long",),
    "generate QUANTIZED -o fox.png": ("give either --prompt (one text) or --prompts (a file)",),
    f"{G} --prompts two.txt": ("give either --prompt (one text) or --prompts (a file)",),
    "generate QUANTIZED -o fox.xyz --prompt x": ("unknown picture format '.xyz'", ".png"),
    "generate QUANTIZED/transformer -o fox.png --prompt x": ("single PixArtTransformer2DModel", "pipeline's folder"),
    f"{G} --batch-size 0": ("'--batch-size'", "1"),
    f"{G} --steps 0": ("'--steps'", "1"),
    f"{G} --height 0": ("'--height'", "1"),
    f"{G} --height 33": ("PixArtAlphaPipeline does not take these settings", "divisible by 8", "another size"),
    f"{G} --frames 5": ("PixArtAlphaPipeline takes no frames", "Allowed: steps, guidance, height, width"),
    f"{C} --seed -3": ("'--seed'", "0"),
    "compare MODEL QUANTIZED/transformer --prompts two.txt -o out": ("pipeline's folder",),
    "compare MODEL MODEL --prompts two.txt -o out": ("given twice",),
    "compare MODEL MODEL/transformer/.. --prompts two.txt -o out": ("given twice",),
    "quantize MODEL": ("Missing option '-o' / '--output'", "ditquant quantize --help"),
    "quantize": ("Missing argument 'MODEL'", "ditquant quantize --help"),
    "quantize MODEL -o out --recpie x": ("No such option: --recpie", "--recipe"),
    "quantise MODEL": ("unknown command 'quantise'", "Did you mean 'quantize'?"),
}


@pytest.mark.parametrize("command", ARGUMENTS)
def test_arguments(place, model, quantized, command):
    refuse(place, model, quantized, command, *ARGUMENTS[command])


PROMPT_FILES = {
    "empty": (b"", "holds no prompt. Write one a line"),
    "blank": (b"\xef\xbb\xbf\n  \r\n\t\n", "holds no prompt"),
    "latin": ("ein Füchslein".encode("latin-1"), "Save it as UTF-8 text"),
    "utf16": ("a fox".encode("utf-16"), "Save it as UTF-8 text"),
}


@pytest.mark.parametrize("content, message", PROMPT_FILES.values(), ids=PROMPT_FILES)
@pytest.mark.parametrize("command", [Q, "generate QUANTIZED -o out", "compare MODEL QUANTIZED -o out"])
def test_prompt_files(place, model, quantized, command, content, message):
    (place / "bad.txt").write_bytes(content)
    refuse(place, model, quantized, f"{command} --prompts bad.txt", "'bad.txt'", message)


def test_a_name_with_two_lines_makes_one_line(place, model):
    (place / "full").rename(place / "two\nlines")
    before = contents(place)
    refused(ditquant("quantize", model, "-o", "two\nlines"), "two lines exists")
    assert contents(place) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has what must be missing")
def test_cuda_that_is_not_there(place, model, quantized):
    refuse(place, model, quantized, f"{Q} --device cuda", "device 'cuda' cannot be used", "Choose cpu or auto")


def test_a_hub_that_cannot_be_reached(place, model, quantized, monkeypatch):
    def unreachable(*_args, **_kwargs):
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    for command in ("inspect no-owner/no-model", "quantize no-owner/no-model -o out"):
        refuse(place, model, quantized, command, "'no-owner/no-model'", "the hub cannot be reached", "the connection")


def test_a_folder_that_may_not_be_written_to(place, model, quantized, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    refuse(place, model, quantized, Q, "cannot write", "Permission denied", "Change the permission")


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), "safetensors"])
def test_a_full_disk(place, model, quantized, monkeypatch, error):
    message = "I/O error: No space left on device (os error 28)"

    def full(self, path, *_args, **_kwargs):
        (path / "half").write_text("half")
        raise error if isinstance(error, OSError) else RuntimeError(message)

    monkeypatch.setattr(PixArtAlphaPipeline, "save_pretrained", full)
    refuse(place, model, quantized, Q, "out: No space left on device. Free some space or choose another place")


@pytest.mark.parametrize("command", [G, "generate QUANTIZED -o out --prompts two.txt --steps 2", C + " --steps 2"])
def test_a_full_disk_under_pictures(place, model, quantized, monkeypatch, command):
    def full(self, path, *_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    refuse(place, model, quantized, command, "No space left on device. Free some space")


def test_too_little_memory(place, model, quantized, monkeypatch):
    def small(*_args, **_kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes.")

    monkeypatch.setattr("ditquant.engine.quantize", small)
    refuse(place, model, quantized, Q, "out of memory", "--dtype bfloat16")
