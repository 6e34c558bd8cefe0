"""DISTS against the paper's formula on torchvision's network, with weights made here."""

from pathlib import Path

import lpips_files
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.metrics import DISTS, load_dists, make_measure
from andfast.models import ModelError

CHANNELS = (3, 64, 128, 256, 512, 512)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("dists")
    trunk, _ = lpips_files.write(folder, "vgg")
    random = torch.Generator().manual_seed(2)
    fitted = {name: torch.rand(1, sum(CHANNELS), 1, 1, generator=random) for name in ("alpha", "beta")}
    torch.save(fitted, folder / "weights.pt")
    return trunk, folder / "weights.pt"


def pooled(x: Tensor) -> Tensor:
    """Eq. 2, by slices: the Hanning window of 5 has 0.5, 1, 0.5 inside."""
    x = F.pad(x.square(), (1, 1, 1, 1))
    height, width = x.shape[2] - 2, x.shape[3] - 2
    total = torch.zeros_like(x[:, :, 1:-1:2, 1:-1:2])
    for row, of_row in enumerate((0.5, 1, 0.5)):
        for column, of_column in enumerate((0.5, 1, 0.5)):
            total += of_row * of_column * x[:, :, row : row + height : 2, column : column + width : 2]
    return (total / 4 + 1e-12).sqrt()


def distance(a: Tensor, b: Tensor, fitted: dict[str, Tensor]) -> list[float]:
    """Eq. 5 to 7 for 8-bit images in [0, 1], in float64."""
    network = lpips_files.trunk("vgg").double()
    mean, deviation = (
        torch.tensor(each, dtype=torch.float64).view(3, 1, 1) for each in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    maps = []
    for x in (a.double(), b.double()):
        found, x = [x], (x - mean) / deviation
        for place, layer in enumerate(network[:30]):
            x = pooled(x) if isinstance(layer, nn.MaxPool2d) else layer(x.clone())
            if place in (3, 8, 15, 22, 29):
                found.append(x)
        maps.append(found)
    distances = []
    for index in range(len(a)):
        similarity, first = 0.0, 0
        for x, y in zip(*maps, strict=True):
            x, y = x[index].flatten(1), y[index].flatten(1)
            alpha, beta = (fitted[name].double().flatten()[first : first + len(x)] for name in ("alpha", "beta"))
            first += len(x)
            mx, my = x.mean(1), y.mean(1)
            covariance = (x * y).mean(1) - mx * my
            texture = (2 * mx * my + 1e-6) / (mx**2 + my**2 + 1e-6)
            structure = (2 * covariance + 1e-6) / (x.var(1, correction=0) + y.var(1, correction=0) + 1e-6)
            similarity += ((alpha * texture).sum() + (beta * structure).sum()).item()
        distances.append(1 - similarity / sum(each.double().sum().item() for each in fitted.values()))
    return distances


def images(height: int, width: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    a = torch.randint(0, 256, (3, 3, height, width), generator=random)
    b = (a + torch.tensor([0, 20, 90]).view(3, 1, 1, 1) * torch.randn(a.shape, generator=random)).round()
    return a / 255, b.clamp(0, 255) / 255


@pytest.mark.parametrize(("height", "width"), [(32, 40), (33, 19), (16, 16)])
def test_it_is_the_paper_s_distance(files: tuple[Path, Path], height: int, width: int) -> None:
    a, b = images(height, width)
    model = load_dists(*files)
    expected = distance(a, b, torch.load(files[1], weights_only=True))
    found = model(a, b)
    assert found[0].item() == pytest.approx(0, abs=1e-6)
    assert found[1] < found[2]
    assert found.tolist() == pytest.approx(expected, rel=1e-3, abs=1e-6)
    assert model.double()(a.double(), b.double()).tolist() == pytest.approx(expected, rel=1e-6, abs=1e-12)


def test_it_sees_what_would_be_saved(files: tuple[Path, Path]) -> None:
    model, (a, b) = load_dists(*files), images(24, 24)
    assert torch.equal(model(a, 3 * b), model(a, (3 * b).clamp(0, 1)))
    assert torch.equal(model(a, b + 0.3 / 255), model(a, b))


def test_it_finds_the_files_where_others_keep_them(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, package = tmp_path / "hub" / "checkpoints", tmp_path / "site" / "torchmetrics"
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub.parent))
    with pytest.raises(FileNotFoundError, match=r"DISTS: no file .*torchvision's file of vgg16"):
        load_dists()
    hub.mkdir(parents=True)
    (hub / "vgg16-397923af.pth").write_bytes(files[0].read_bytes())
    with monkeypatch.context() as patch:
        patch.setattr("importlib.util.find_spec", lambda name: None)
        with pytest.raises(FileNotFoundError, match=r"torchmetrics and DISTS_pytorch.*pip install torchmetrics"):
            load_dists()
    place = package / "functional" / "image" / "dists_models"
    place.mkdir(parents=True)
    (place / "weights.pt").write_bytes(files[1].read_bytes())
    (package / "__init__.py").write_text("raise ImportError('nobody imports it')")
    monkeypatch.syspath_prepend(str(package.parent))
    a, b = images(16, 20)
    measure = make_measure("dists", 4)
    assert measure(a[2:], b[2:]) == load_dists(*files)(a[2:], b[2:]).item()
    assert measure.settings["weights_sha256"] == load_dists(*files).digest()


def test_other_weights_and_sizes_are_refused(files: tuple[Path, Path]) -> None:
    with pytest.raises(ModelError, match=r"DISTS wants the authors' file of alpha and beta"):
        load_dists(files[0], files[0])
    with pytest.raises(ValueError, match=r"at least 16, not \(1, 3, 15, 20\)"):
        DISTS()(torch.rand(1, 3, 15, 20), torch.rand(1, 3, 15, 20))
