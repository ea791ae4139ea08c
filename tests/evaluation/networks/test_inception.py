"""Inception's architecture by its known numbers; its weights are read from safetensors only."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ditquant.errors import DitQuantError
from ditquant.evaluation.networks.inception import POOLS, Inception


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return Inception().eval()


def test_the_architecture_is_inception_v3(network):
    # 23,834,568 trainable parameters with 1,000 classes, of which 2,049,000 are the classifier's
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 - 2_049_000
    assert sum(isinstance(m, torch.nn.Conv2d) for m in network.modules()) == 94
    shapes = {}
    for name, module in network.named_children():
        module.register_forward_hook(lambda _, args, out, name=name: shapes.update({name: tuple(out.shape[1:])}))
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 80)).shape == (1, 2048)
    assert shapes["Conv2d_2a_3x3"] == (32, 147, 147) and shapes["Conv2d_4a_3x3"] == (192, 71, 71)
    assert shapes["Mixed_5d"] == (288, 35, 35) and shapes["Mixed_6e"] == (768, 17, 17)
    assert shapes["Mixed_7c"] == (2048, 8, 8)


def test_borders_are_averaged_over_the_picture_only():
    assert torch.equal(POOLS["average"](torch.ones(1, 1, 5, 5)), torch.ones(1, 1, 5, 5))


def test_saved_and_loaded_without_counters(network, tmp_path):
    tensors = {name: t for name, t in network.state_dict().items() if "num_batches" not in name}
    save_file(tensors | {"fc.weight": torch.zeros(1)}, tmp_path / "inception.safetensors")
    images = [np.random.default_rng(i).integers(0, 256, (40, 40, 3)).astype(np.uint8) for i in range(2)]
    video = np.stack(images)
    loaded = Inception.load(tmp_path / "inception.safetensors")
    found = loaded.features([*images, video])
    assert found.shape == (4, 2048) and torch.allclose(found[:2], found[2:], atol=1e-5)
    del tensors["Mixed_6b.branch7x7_2.conv.weight"]
    save_file(tensors, tmp_path / "less.safetensors")
    with pytest.raises(DitQuantError, match=r"has no tensor 'Mixed_6b.branch7x7_2.conv.weight'"):
        Inception.load(tmp_path / "less.safetensors")
