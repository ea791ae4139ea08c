"""Models that no family names: blocks are found by repetition, roles by name and shape."""

import diffusers
import pytest
from torch import nn

from ditquant.models import ROLES, find_linears, generic, guess_role


class Attention(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)


class CrossAttention(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.q_linear, self.kv_linear = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.proj = nn.Linear(width, width)


class Mlp(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)


class STDiTBlock(nn.Module):
    """The layout of Open-Sora's blocks."""

    def __init__(self):
        super().__init__()
        self.attn, self.cross_attn, self.mlp = Attention(), CrossAttention(), Mlp()


class Sandwich(nn.Module):
    """Embedders and a head around whatever blocks."""

    def __init__(self, **blocks):
        super().__init__()
        self.x_embedder = nn.Conv3d(4, 16, 1)
        self.t_embedder = nn.Sequential(nn.Linear(8, 16), nn.SiLU(), nn.Linear(16, 16))
        self.y_embedder = nn.ModuleList([nn.Linear(8, 16), nn.Linear(8, 16)])
        for name, block in blocks.items():
            setattr(self, name, block)
        self.final_layer = nn.Linear(16, 8)


STDIT_ROLES = {
    "attn.qkv": "attn_qkv",
    "attn.proj": "attn_out",
    "cross_attn.q_linear": "cross_q",
    "cross_attn.kv_linear": "cross_kv",
    "cross_attn.proj": "cross_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}


def roles(model: nn.Module) -> dict[str, str]:
    return {layer.name: layer.role for layer in find_linears(model).layers}


@pytest.mark.parametrize("count", [1, 3])
def test_a_list_with_a_single_block(count):
    model = Sandwich(
        double_blocks=nn.ModuleList([STDiTBlock() for _ in range(count)]),
        single_blocks=nn.ModuleList([STDiTBlock()]),
        text_projection=nn.ModuleList([Mlp()]),
    )
    assert find_linears(model).blocks == ("double_blocks", "single_blocks")
    assert len(roles(model)) == 7 * (count + 1)


def test_stdit():
    blocks = {name: nn.ModuleList([STDiTBlock() for _ in range(3)]) for name in ("spatial_blocks", "temporal_blocks")}
    model = Sandwich(**blocks)
    coverage = find_linears(model)
    assert (coverage.family, coverage.blocks) == ("generic", ("spatial_blocks", "temporal_blocks"))
    assert roles(model) == {
        f"{path}.{i}.{name}": role for path in blocks for i in range(3) for name, role in STDIT_ROLES.items()
    }


def test_the_outermost_list_counts():
    stage = [nn.Sequential(STDiTBlock(), STDiTBlock()) for _ in range(2)]
    model = Sandwich(stages=nn.ModuleList(stage))
    assert [b.path for b in generic(model).blocks] == ["stages"]
    assert roles(model)["stages.1.0.mlp.fc2"] == "ffn_down"


def test_a_sequential_with_its_ends():
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(16, 4)

    model = nn.Sequential(nn.Linear(4, 16), STDiTBlock(), STDiTBlock(), Head())
    assert roles(model) == {f"{i}.{name}": role for i in (1, 2) for name, role in STDIT_ROLES.items()}


def test_lists_of_pairs():
    """Some models keep a block as a list of attention and feed-forward."""
    model = Sandwich(layers=nn.ModuleList([nn.ModuleList([Attention(), Mlp()]) for _ in range(2)]))
    assert roles(model)["layers.1.0.qkv"] == "attn_qkv"
    assert roles(model)["layers.1.1.fc2"] == "ffn_down"


def test_repeated_projections_are_no_blocks_beside_blocks():
    class Projection(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(8, 16)

    projections = nn.ModuleList([Projection() for _ in range(4)])
    model = Sandwich(projections=projections, blocks=nn.ModuleList([STDiTBlock(), STDiTBlock()]))
    assert find_linears(model).blocks == ("blocks",)
    assert find_linears(Sandwich(projections=projections)).blocks == ("projections",)


def test_without_repeated_blocks_all_but_the_ends():
    model = Sandwich(block=STDiTBlock())
    assert roles(model) == {f"block.{name}": role for name, role in STDIT_ROLES.items()}
    assert find_linears(model).blocks == ()
    assert {s.name for s in find_linears(model).skipped if s.kind == "Linear"} == {
        "t_embedder.0",
        "t_embedder.2",
        "y_embedder.0",
        "y_embedder.1",
        "final_layer",
    }


def test_a_small_list_with_one_module_is_no_block_list():
    model = Sandwich(blocks=nn.ModuleList([Mlp()]))
    assert find_linears(model).blocks == ()
    assert set(roles(model)) == {"blocks.0.fc1", "blocks.0.fc2"}


def test_a_module_without_linears_has_nothing():
    assert find_linears(nn.Conv2d(3, 3, 1)).layers == ()
    assert find_linears(nn.Linear(4, 4)).layers == ()


@pytest.mark.parametrize(
    ("name", "shape", "role"),
    [
        ("adaLN_modulation.1", (16, 96), "modulation"),
        ("img_mod.1", (16, 96), "modulation"),
        ("norm1_context.linear", (16, 96), "modulation"),
        ("attn.to_q", (16, 16), "attn_q"),
        ("self_attn.q_proj", (16, 16), "attn_q"),
        ("attention.wk", (16, 16), "attn_k"),
        ("attn.to_added_qkv", (16, 48), "add_qkv"),
        ("txt_attn.proj", (16, 16), "add_out"),
        ("img_attn.qkv", (16, 48), "attn_qkv"),
        ("attn2.to_out.0", (16, 16), "cross_out"),
        ("attn.to_qkv_mlp_proj", (16, 144), "single_in"),
        ("attn.to_out", (64, 16), "single_out"),
        ("feed_forward.w1", (16, 64), "ffn_up"),
        ("feed_forward.w2", (64, 16), "ffn_down"),
        ("mlp.experts.3.gate_proj", (16, 64), "ffn_up"),
        ("mlp.router", (16, 4), "router"),
        ("ff_context.net.0.proj", (16, 64), "ffn_context_up"),
        ("txt_mlp.fc2", (64, 16), "ffn_context_down"),
        ("ff.linear_2", (16, 16), "ffn_down"),
        ("t_embedder.mlp.0", (16, 16), "embedding"),
        ("skip_linear", (32, 16), "linear"),
        ("", (4, 4), "linear"),
    ],
)
def test_guesses(name, shape, role):
    assert guess_role(name, *shape) == role
    assert role in ROLES


CLASSES = sorted(
    name
    for name in dir(diffusers)
    if "Transformer" in name and name.endswith("Model") and not name.startswith("AutoModel")
)
NEEDS_OPTIONS = {
    "DreamLiteTransformer2DModel",
    "EasyAnimateTransformer3DModel",
    "HiDreamImageTransformer2DModel",
    "LatteTransformer3DModel",
    "OmniGenTransformer2DModel",
    "Transformer2DModel",
    "TransformerTemporalModel",
}
MOSTLY_CONVOLUTIONS = {"SanaTransformer2DModel", "SanaVideoTransformer3DModel", "SanaWMTransformer3DModel"}
STACKED_EXPERTS = {"NucleusMoEImageTransformer2DModel"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [n for n in CLASSES if n not in NEEDS_OPTIONS])
def test_every_transformer_of_diffusers(name):
    """At full size without memory: blocks are found, and hold nearly all parameters."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = getattr(diffusers, name)()
    coverage = find_linears(model)
    share = sum(layer.parameters for layer in coverage.layers) / sum(p.numel() for p in model.parameters())
    assert coverage.blocks
    assert share > (0.4 if name in MOSTLY_CONVOLUTIONS else 0.05 if name in STACKED_EXPERTS else 0.9)
    assert sum(layer.role == "linear" for layer in coverage.layers) <= 0.2 * len(coverage.layers)
