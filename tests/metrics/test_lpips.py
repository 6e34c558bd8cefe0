"""LPIPS against torchvision's networks and the paper's formula, with weights made here."""

import lpips_files
import pytest
import torch

from andfast.metrics import LPIPS, load_lpips
from andfast.metrics.lpips import NETS
from andfast.models import ModelError


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    return {net: lpips_files.write(folder, net) for net in NETS}


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    """Nothing in the cache of PyTorch's hub, nor in packages."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    return tmp_path


def images(height, width, seed=0):
    random = torch.Generator().manual_seed(seed)
    a = torch.randint(0, 256, (3, 3, height, width), generator=random)
    b = (a + torch.tensor([0, 20, 90]).view(3, 1, 1, 1) * torch.randn(a.shape, generator=random)).round()
    return a.float(), b.clamp(0, 255)


@pytest.mark.parametrize(
    ("net", "height", "width"), [("alex", 64, 75), ("alex", 31, 31), ("vgg", 33, 19), ("vgg", 16, 16)]
)
def test_it_is_the_papers_distance(files, net, height, width):
    a, b = images(height, width)
    expected = lpips_files.distance(net, a, b)
    model = load_lpips(net, *files[net])
    found = model(a / 255, b / 255)
    assert found[0] == 0
    assert found[1] < found[2]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(model.double()(a.double() / 255, b.double() / 255), expected, rtol=1e-6, atol=1e-9)
    for index in range(3):
        alone = model(a[index : index + 1].double() / 255, b[index : index + 1].double() / 255)
        assert alone.item() == pytest.approx(found[index].item(), rel=1e-4, abs=1e-9)


def test_it_sees_what_would_be_saved(files):
    model = load_lpips("alex", *files["alex"])
    a, _ = images(40, 40)
    assert model(a / 255, a / 255 + 0.3 / 255).tolist() == [0, 0, 0]
    assert model(a / 255, (a / 255 * 3).clamp(0, 1)).equal(model(a / 255, a / 255 * 3))


def test_it_finds_the_files_where_others_keep_them(files, no_cache, monkeypatch):
    checkpoints = no_cache / "hub" / "checkpoints"
    package = no_cache / "site" / "lpips"
    (package / "weights" / "v0.1").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('nobody imports it')")
    checkpoints.mkdir(parents=True)
    trunk, linear = files["alex"]
    (checkpoints / "alexnet-owt-7be5be79.pth").write_bytes(trunk.read_bytes())
    (package / "weights" / "v0.1" / "alex.pth").write_bytes(linear.read_bytes())
    monkeypatch.undo()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(no_cache / "hub"))
    monkeypatch.syspath_prepend(str(package.parent))
    monkeypatch.setattr("andfast.metrics.lpips._LINEAR", {"lpips": "weights/v0.1"})
    a, b = images(32, 32)
    assert load_lpips("alex")(a / 255, b / 255).equal(load_lpips("alex", *files["alex"])(a / 255, b / 255))


@pytest.mark.usefixtures("no_cache")
def test_what_is_missing_is_said(files, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"LPIPS \(alex\).*hub.*torchvision's file of alexnet.*-7be5be79"):
        load_lpips("alex")
    with pytest.raises(FileNotFoundError, match=r"LPIPS \(vgg\).*torchmetrics and lpips.*vgg\.pth of v0\.1; pip"):
        load_lpips("vgg", trunk=files["vgg"][0])
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*torchvision's file of vgg16"):
        load_lpips("vgg", trunk=tmp_path / "none.pth")


def test_other_weights_are_refused(files, tmp_path):
    with pytest.raises(ModelError, match=r"vgg_trunk\.pth: \d+ weights .*LPIPS \(alex\) wants torchvision's"):
        load_lpips("alex", files["vgg"][0], files["alex"][1])
    with pytest.raises(ModelError, match=r"vgg\.pth: 4 weights .*lin1\.model.*LPIPS \(alex\) wants lpips's"):
        load_lpips("alex", files["alex"][0], files["vgg"][1])
    (tmp_path / "damaged.pth").write_bytes(files["alex"][1].read_bytes()[:500])
    with pytest.raises(ModelError, match=r"damaged\.pth.*LPIPS \(alex\) wants lpips's"):
        load_lpips("alex", files["alex"][0], tmp_path / "damaged.pth")
    whole = {key: value.mul(10).long() for key, value in lpips_files.linear("alex").items()}
    torch.save(whole, tmp_path / "whole.pth")
    with pytest.raises(ModelError, match=r"whole\.pth: its weights are whole numbers"):
        load_lpips("alex", files["alex"][0], tmp_path / "whole.pth")
    with pytest.raises(ValueError, match="no network 'squeeze'; it has alex, vgg"):
        LPIPS("squeeze")


def test_wrong_images_are_refused(files):
    model = load_lpips("alex", *files["alex"])
    assert model.least_size == 31
    for a, b in (((1, 3, 30, 40), (1, 3, 30, 40)), ((1, 3, 40, 40), (2, 3, 40, 40)), ((1, 1, 40, 40), (1, 1, 40, 40))):
        with pytest.raises(ValueError, match="H and W at least 31, not"):
            model(torch.rand(a), torch.rand(b))
