"""Recipes that are refused: exit code 2, one line that says what is allowed, and nothing written."""

import pytest

from tests.cli.command import refuse, write_recipe

Q = "quantize MODEL -o out"

RULES = {
    "Did you mean 'quantizer'": {"quantiser": "rtn"},
    "weight bits 9 are not allowed. Choose an integer from 2 to 8": {"weight": {"bits": 9}},
    "weight bits 1 are not allowed": {"weight": {"bits": 1}},
    "activation bits 16 are not allowed": {"activation": {"bits": 16}},
    "group_size 24 does not divide in_features 32 of 'transformer_blocks.0.attn1.to_q'. Divisors near it: 4, 8, 16": {
        "weight": {"bits": 4, "group_size": 24}
    },
    "unknown role 'ffn_dwn'. Did you mean 'ffn_down'": {"target": "role:ffn_dwn"},
    "matches no layer of the model. Layers near it: transformer_blocks.0.attn": {
        "target": "transformer_blocks.0.attn.q"
    },
    "quantizes none of the model's 20 linear layers. Write a rule for one of their roles: attn_k": {
        "target": "role:modulation"
    },
    "unknown quantizer 'gptqq'": {"quantizer": "gptqq"},
    "Did you mean 'affine'": {"weight": {"bits": 4, "format": "afine"}},
    "Did you mean 'smooth'": {"transforms": ["smoth"]},
}


@pytest.mark.parametrize("message", RULES)
@pytest.mark.parametrize("command", [Q, "inspect MODEL"])
def test_rules(place, model, quantized, command, message):
    write_recipe(place / "mine.yaml", **RULES[message])
    refuse(place, model, quantized, f"{command} --recipe mine.yaml", message)


FILES = {
    "a mapping with 'name' and 'rules', got NoneType": "",
    "a mapping with 'name' and 'rules', got list": "- a",
    "line 2 is not YAML: the key 'name' is given twice": "name: a\nname: b\n",
    "holds more than 100,000 entries": "a: &a [1]\n"
    + "".join(
        f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
    ),
    "could not determine a constructor for the tag": "!!python/object/apply:os.mkdir [made]",
    "is not YAML": "name: [",
    "is not a recipe: RecursionError": "[" * 3000,
}


@pytest.mark.parametrize("message", FILES)
def test_recipe_files(place, model, quantized, message):
    (place / "mine.yaml").write_text(FILES[message])
    refuse(place, model, quantized, f"{Q} --recipe mine.yaml", "mine.yaml", message)
