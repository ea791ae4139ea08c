"""Damage at random: whatever happens to the bytes of a checkpoint, it loads as it was saved or is refused."""

import json
import random
import shutil
import warnings
from resource import RUSAGE_SELF, getrusage

import pytest
from diffusers.utils import logging

from tests.integrations.built import equal_states, public_config, quantized

FEW, MANY = 100, 2_500  # of each of the four kinds


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original")
    quantized().save_pretrained(folder, max_shard_size="60KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


@pytest.fixture(autouse=True)
def quiet():
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


def flip(rng, data):
    """Flip one bit, or overwrite one byte, of the part that a header or a config is, or of all."""
    place = rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 4096))
    value = data[place] ^ (1 << rng.randrange(8)) if rng.random() < 0.5 else rng.randrange(256)
    return data[:place] + bytes([value]) + data[place + 1 :]


def truncate(rng, data):
    return data[: rng.randrange(len(data))]


def swap(rng, data):
    """Exchange two ranges."""
    size = rng.randrange(1, 64)
    a, b = sorted(rng.randrange(max(1, len(data) - size)) for _ in range(2))
    if b < a + size:
        return data[:a] + data[b : b + size] + data[a:b] + data[b + size :]
    return data[:a] + data[b : b + size] + data[a + size : b] + data[a : a + size] + data[b + size :]


def edit_json(rng, data):
    """Change one value of a JSON file, or of the header of a safetensors file."""
    size = int.from_bytes(data[:8], "little")
    is_header = data[:1] != b"{"
    text, rest = (data[8 : 8 + size], data[8 + size :]) if is_header else (data, b"")
    tree = json.loads(text)
    parent = tree
    for _ in range(rng.randrange(1, 6)):
        key = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        if not isinstance(parent[key], dict | list) or not parent[key]:
            break
        parent, key = parent[key], rng.choice(list(parent[key]) if isinstance(parent[key], dict) else [0])
    match rng.randrange(4):
        case 0:
            del parent[key]
        case 1:
            parent[key] = rng.choice([None, True, -1, 0, 3, 2.5, "", "pt", "8", [], {}, [1], {"a": 1}])
        case 2:
            parent[key] = json.loads(json.dumps(rng.choice(list(tree.values()))))
        case _ if isinstance(parent, dict):
            parent[str(key) + rng.choice(["", "x", "_"])] = parent.pop(key)
    text = json.dumps(tree).encode()
    return len(text).to_bytes(8, "little") + text + rest if is_header else text


def damage(original, folder, rng, change):
    """Damage one file of a copy; return its name."""
    file = rng.choice(sorted(original.iterdir()))
    shutil.copytree(original, folder, dirs_exist_ok=True)
    (folder / file.name).write_bytes(change(rng, file.read_bytes()))
    return file.name


def attack(original, folder, change, seeds):
    """Return how many of the damaged checkpoints were refused; all others must load equal."""
    model, refused = quantized(), 0
    before = getrusage(RUSAGE_SELF).ru_maxrss
    for seed in seeds:
        name = damage(original, folder, random.Random(seed), change)
        try:
            again = type(model).from_pretrained(folder)
        except MemoryError:
            raise
        except Exception:
            refused += 1
        else:
            try:
                assert equal_states(again, model) and public_config(again) == public_config(model)
            except AssertionError as error:
                raise AssertionError(f"seed {seed}: {name} is damaged and loads as something else") from error
    assert getrusage(RUSAGE_SELF).ru_maxrss - before < 300 * 1024, "more than 300 MB were allocated"
    return refused


@pytest.mark.parametrize("change", [flip, truncate, swap, edit_json])
def test_damage_is_refused_or_harmless(change, original, tmp_path):
    assert attack(original, tmp_path, change, range(FEW)) > FEW // 2


@pytest.mark.slow
@pytest.mark.parametrize("change", [flip, truncate, swap, edit_json])
def test_damage_ten_thousand_times(change, original, tmp_path):
    assert attack(original, tmp_path, change, range(1_000, 1_000 + MANY)) > MANY // 2
