"""LPIPS against its formula on networks put together by hand; weights come from safetensors only."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from ditquant.errors import DitQuantError
from ditquant.evaluation.networks.lpips import Lpips

WIDTHS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


def layers(kind: str) -> nn.Sequential:
    """The convolutional part of AlexNet or VGG16, whose positions are the names in the files."""
    torch.manual_seed(0)
    relu, found = nn.ReLU(), []
    if kind == "alex":
        pool = nn.MaxPool2d(3, 2)
        found = [nn.Conv2d(3, 64, 11, 4, 2), relu, pool, nn.Conv2d(64, 192, 5, padding=2), relu, pool]
        found += [nn.Conv2d(192, 384, 3, padding=1), relu, nn.Conv2d(384, 256, 3, padding=1), relu]
        found += [nn.Conv2d(256, 256, 3, padding=1), relu]
    else:
        width = 3
        for out, repeats in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
            for _ in range(repeats):
                found += [nn.Conv2d(width, out, 3, padding=1), relu]
                width = out
            found.append(nn.MaxPool2d(2))
    return nn.Sequential(*found)


ENDS = {"alex": (1, 4, 7, 9, 11), "vgg": (3, 8, 15, 22, 29)}


@pytest.fixture(scope="module", params=["alex", "vgg"])
def network(request, tmp_path_factory):
    kind = request.param
    network = layers(kind)
    linear = [torch.rand(1, width, 1, 1) for width in WIDTHS[kind]]
    tensors = {f"lin{i}.model.1.weight": weight for i, weight in enumerate(linear)}
    for name, value in network.state_dict().items():
        part = next(i for i, end in enumerate(ENDS[kind]) if int(name.split(".")[0]) <= end)
        tensors[f"net.slice{part + 1}.{name}"] = value
    path = tmp_path_factory.mktemp("lpips") / f"{kind}.safetensors"
    save_file(tensors, path)
    return kind, network, linear, path


def pictures(size: tuple[int, int] = (48, 40)) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randint(0, 256, (*size, 3), generator=generator).to(torch.uint8) for _ in range(2))


@torch.no_grad()
def by_hand(kind: str, network: nn.Sequential, linear: list[torch.Tensor], *images: torch.Tensor) -> float:
    found = []
    for image in images:
        x = 2 * (image.double().permute(2, 0, 1) / 255) - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
            3, 1, 1
        )
        features, x = [], x[None].float()
        for i, layer in enumerate(network):
            x = layer(x)
            if i in ENDS[kind]:
                features.append(x[0].double().numpy())
        found.append(features)
    total = 0.0
    for weight, a, b in zip(linear, *found, strict=True):
        a, b = (f / (np.sqrt((f**2).sum(0, keepdims=True)) + 1e-10) for f in (a, b))
        total += np.einsum("c,chw->hw", weight.flatten().double().numpy(), (a - b) ** 2).mean()
    return float(total)


def test_the_formula(network):
    kind, layers, linear, path = network
    a, b = pictures()
    lpips = Lpips.load(path)
    assert lpips(a, b).item() == pytest.approx(by_hand(kind, layers, linear, a, b), rel=1e-3)
    assert lpips(a, a).item() == 0 and lpips(a, b).item() == pytest.approx(lpips(b, a).item(), rel=1e-5)
    video = lpips(torch.stack([a, a]), torch.stack([b, a])).item()
    assert video == pytest.approx(lpips(a, b).item() / 2, rel=1e-4)


def test_small_pictures_are_refused(network):
    with pytest.raises(DitQuantError, match="at least 32 pixels"):
        Lpips.load(network[3])(*pictures((31, 40)))


def test_files_that_are_none_are_refused(network, tmp_path):
    with pytest.raises(DitQuantError, match="there is no file"):
        Lpips.load(tmp_path / "none.safetensors")
    torch.save({"x": torch.zeros(1)}, tmp_path / "pickle.safetensors")
    with pytest.raises(DitQuantError, match="is not a safetensors file"):
        Lpips.load(tmp_path / "pickle.safetensors")
    save_file({"net.slice1.0.weight": torch.zeros(2, 3, 11, 11)}, tmp_path / "odd.safetensors")
    with pytest.raises(DitQuantError, match=r"has shape \(2, 3, 11, 11\) instead of \(64, 3, 11, 11\)"):
        Lpips.load(tmp_path / "odd.safetensors")
