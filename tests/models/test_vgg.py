"""VGG19's features, against the same network written place by place, from a file such as torchvision's."""

import hashlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from vgg_file import WANTED, random_vgg, vgg_features, write_vgg

from andfast.models import ModelError, VGGFeatures, load_vgg_features, vgg


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("vgg") / "vgg19.pth"
    write_vgg(path)
    return path


@pytest.fixture(scope="module")
def state():
    return random_vgg()


def distance(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other).norm() / other.norm())


@pytest.mark.parametrize("size", [(16, 16), (33, 47)])
def test_features_and_gradient(file, state, size):
    features = load_vgg_features(file, WANTED)
    image = torch.rand(2, 3, *size, requires_grad=True)
    exact = image.detach().double().requires_grad_()
    found, expected = features(image), vgg_features(state, exact)
    assert list(found) == list(WANTED)
    for name in WANTED:
        assert found[name].shape == expected[name].shape
        assert distance(found[name].detach(), expected[name].detach()) < 1e-5, name
    grads = [torch.randn_like(value) for value in found.values()]
    (one,) = torch.autograd.grad(list(found.values()), image, grads)
    (other,) = torch.autograd.grad(list(expected.values()), exact, [grad.double() for grad in grads])
    # A value next to 0 may have either sign in float32.
    assert distance(one, other) < 1e-2
    assert not any(weight.requires_grad for weight in features.parameters())


def test_bfloat16_and_channels_last(file, state):
    """Normalised in float32, then at most twice the error that PyTorch makes in the type."""
    features = load_vgg_features(file, WANTED, dtype=torch.bfloat16)
    image = torch.rand(1, 3, 32, 32)
    expected, plain = (vgg_features(state, image, dtype) for dtype in (torch.float64, torch.bfloat16))
    found = features(image)
    for name, value in found.items():
        assert value.dtype == torch.bfloat16
        assert value.is_contiguous(memory_format=torch.channels_last)
        assert distance(value, expected[name]) <= 2 * distance(plain[name], expected[name]), name
    assert features.mean.dtype == features.std.dtype == torch.float32


def test_no_deeper_than_wanted(file):
    features = load_vgg_features(file, ["conv2_2", "conv1_2"])
    assert list(features.state_dict()) == [f"features.{i}.{kind}" for i in (0, 2, 5, 7) for kind in ("weight", "bias")]
    assert features.least_size == 2
    found = features(torch.rand(1, 3, 2, 3))
    assert {name: tuple(value.shape) for name, value in found.items()} == {
        "conv1_2": (1, 64, 2, 3),
        "conv2_2": (1, 128, 1, 1),
    }


def test_what_is_returned_is_not_written_to(file):
    """Before the ReLU, also where the network goes on."""
    found = load_vgg_features(file, ["conv1_2", "conv2_1"])(torch.rand(1, 3, 8, 8))
    assert (found["conv1_2"] < 0).any()
    deeper = load_vgg_features(file, ["conv2_1"])
    conv = deeper.features["5"]
    again = F.conv2d(F.max_pool2d(found["conv1_2"].clamp(min=0), 2), conv.weight, conv.bias, padding=1)
    torch.testing.assert_close(found["conv2_1"], again, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("layer", "seen"), [("conv1_2", 5), ("conv2_2", 14), ("conv3_4", 48)])
def test_receptive_sizes(layer, seen):
    """Nothing outside of its square of the image moves a feature, and every side of it does.

    Weights above 0, and pixels there far above all others, so that no maximum and no ReLU hides them.
    """
    features = VGGFeatures([layer]).double()
    for weight in features.features.parameters():
        weight.data.uniform_(0.5, 1).div_(9 * weight[0].numel() / 9)
    size, stride = 96, {"conv1_2": 1, "conv2_2": 2, "conv3_4": 4}[layer]
    place = size // stride // 2
    padding = {"conv1_2": 2, "conv2_2": 6, "conv3_4": 22}[layer]  # 2; 2 + 2 * 2; 2 + 2 * 2 + 4 * 4
    first = place * stride - padding
    inside = slice(first, first + seen)

    def feature(image):
        return features(image)[layer][0, 0, place, place]

    image = torch.ones(1, 3, size, size, dtype=torch.float64)
    before = feature(image)
    outside = image + 1e6
    outside[..., inside, inside] = 1
    assert feature(outside) == before
    for side in ((first, inside), (first + seen - 1, inside), (inside, first), (inside, first + seen - 1)):
        moved = image.clone()
        moved[..., side[0], side[1]] += 1e6
        assert feature(moved) > before


def test_nan_propagates(file):
    image = torch.rand(2, 3, 32, 32)
    image[0, 1, 9, 9] = torch.nan
    found = load_vgg_features(file, WANTED)(image)
    for value in found.values():
        assert value[0].isnan().any()
        assert value[1].isfinite().all()


@pytest.mark.parametrize("shape", [(1, 3, 15, 16), (1, 3, 64, 8), (1, 1, 64, 64), (3, 64, 64)])
def test_images_that_do_not_fit_are_refused(file, shape):
    features = load_vgg_features(file, WANTED)
    with pytest.raises(ValueError, match=r"image has shape .* at least 16 for conv5_4"):
        features(torch.rand(shape))


@pytest.mark.parametrize(("layers", "said"), [(["conv3_5"], "no layer conv3_5"), (["relu"], "relu"), ([], "no layer;")])
def test_layers_that_are_none_are_refused(layers, said):
    with pytest.raises(ValueError, match=said):
        VGGFeatures(layers)


def test_safetensors_without_the_classifier_and_half_types(tmp_path, state):
    path = tmp_path / "vgg.safetensors"
    save_file({key: value.half() for key, value in state.items() if key.startswith("features.")}, path)
    (found,) = load_vgg_features(path, ["conv1_1"])(torch.rand(1, 3, 4, 4)).values()
    assert found.dtype == torch.float32


def refused(path, *said, error=ModelError):
    with pytest.raises(error) as caught:
        load_vgg_features(path, ["conv1_2"])
    for part in (str(path), "https://download.pytorch.org/models/vgg19-dcbb9e9d.pth", "'download'", *said):
        assert part in str(caught.value)


def test_a_missing_or_truncated_file_says_how_to_get_one(tmp_path, file):
    refused(tmp_path / "vgg19.pth", "no such file", error=FileNotFoundError)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(file.read_bytes()[:-1000])
    refused(cut, "truncated")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda state: state.pop("features.34.bias"), "features.34.bias"),  # deeper than what is wanted
        (lambda state: state.update({"features.1.weight": torch.zeros(64)}), "features.1.weight"),  # vgg19_bn
        (lambda state: state.update({"features.0.weight": torch.zeros(64, 1, 3, 3)}), "features.0.weight"),
        (lambda state: [state.pop(key) for key in list(state)[1:]], "not VGG19"),
        (lambda state: state.update({"features.0.bias": torch.zeros(64, dtype=torch.int8)}), "quantised"),
    ],
)
def test_a_foreign_file_says_how_to_get_one(tmp_path, change, said):
    with torch.device("meta"):
        shapes = {key: value.shape for key, value in VGGFeatures().state_dict().items()}
    # One number in memory and in the file for each tensor.
    state = {"classifier.6.bias": torch.zeros(1000)}
    state |= {key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}
    change(state)
    path = tmp_path / "vgg.pth"
    torch.save(state, path)
    refused(path, said)


def test_fetched_once_into_the_hub_s_cache(tmp_path, file, monkeypatch):
    """From an address on this machine, in the place of PyTorch's."""
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    source = tmp_path / f"vgg19-{digest[:8]}.pth"
    source.symlink_to(file)
    monkeypatch.setattr(vgg, "URL", source.as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    load_vgg_features("download", ["conv1_1"])
    cached = Path(torch.hub.get_dir()) / "checkpoints" / source.name
    assert cached.is_file()
    source.unlink()
    load_vgg_features("download", ["conv1_1"])


@pytest.mark.parametrize("name", ["vgg19-00000000.pth", "missing-00000000.pth"])
def test_what_cannot_be_fetched_says_how_to_get_it(tmp_path, monkeypatch, name):
    (tmp_path / "vgg19-00000000.pth").write_bytes(b"not what the name says")
    monkeypatch.setattr(vgg, "URL", (tmp_path / name).as_uri())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    with pytest.raises(ModelError, match=r"could not be fetched \(.*Wanted is torchvision's file"):
        load_vgg_features("download", ["conv1_1"])
    assert not list((tmp_path / "home").rglob("*.pth"))
