"""Discriminators: the names, shapes and functions that others' files go with, and what each image's verdict sees."""

import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from andfast.models import (
    DISCRIMINATORS,
    Compact,
    ModelError,
    UNetDiscriminatorSN,
    VGGStyleDiscriminator,
    build_discriminator,
    load_discriminator,
    load_model,
    save_model,
)
from andfast.models.frozen import AutocastModule, FrozenModule

# Per stage, in the order of BasicSR's classes.
VGG_128 = """
conv0_0.weight 64 3 3 3 | conv0_0.bias 64 | conv0_1.weight 64 64 4 4 | bn0_1 64
conv1_0.weight 128 64 3 3 | bn1_0 128 | conv1_1.weight 128 128 4 4 | bn1_1 128
conv2_0.weight 256 128 3 3 | bn2_0 256 | conv2_1.weight 256 256 4 4 | bn2_1 256
conv3_0.weight 512 256 3 3 | bn3_0 512 | conv3_1.weight 512 512 4 4 | bn3_1 512
conv4_0.weight 512 512 3 3 | bn4_0 512 | conv4_1.weight 512 512 4 4 | bn4_1 512
"""
VGG_256 = VGG_128 + "conv5_0.weight 512 512 3 3 | bn5_0 512 | conv5_1.weight 512 512 4 4 | bn5_1 512\n"
LINEAR = "linear1.weight 100 8192 | linear1.bias 100 | linear2.weight 1 100 | linear2.bias 1"
VGG_64 = "\n".join(VGG_128.strip().splitlines()[:4]) + "\n"
UNET = """
conv0.weight 64 3 3 3 | conv0.bias 64
conv1.weight_orig 128 64 4 4 | conv1.weight_u 128 | conv1.weight_v 1024
conv2.weight_orig 256 128 4 4 | conv2.weight_u 256 | conv2.weight_v 2048
conv3.weight_orig 512 256 4 4 | conv3.weight_u 512 | conv3.weight_v 4096
conv4.weight_orig 256 512 3 3 | conv4.weight_u 256 | conv4.weight_v 4608
conv5.weight_orig 128 256 3 3 | conv5.weight_u 128 | conv5.weight_v 2304
conv6.weight_orig 64 128 3 3 | conv6.weight_u 64 | conv6.weight_v 1152
conv7.weight_orig 64 64 3 3 | conv7.weight_u 64 | conv7.weight_v 576
conv8.weight_orig 64 64 3 3 | conv8.weight_u 64 | conv8.weight_v 576
conv9.weight 1 64 3 3 | conv9.bias 1
"""


def listed(text):
    shapes = {}
    for entry in text.replace("\n", "|").split("|"):
        name, *sizes = entry.split() or [""]
        shape = tuple(map(int, sizes))
        if name.startswith("bn"):
            shapes |= {f"{name}.{kind}": shape for kind in ("weight", "bias", "running_mean", "running_var")}
            shapes[f"{name}.num_batches_tracked"] = ()
        elif name:
            shapes[name] = shape
    return shapes


def small(name, patch=16):
    torch.manual_seed(0)
    return build_discriminator(name, patch, features=2)


@pytest.mark.parametrize(
    ("name", "patch", "text"),
    [
        ("vgg", 64, VGG_64 + LINEAR),
        ("vgg", 128, VGG_128 + LINEAR),
        ("vgg", 256, VGG_256 + LINEAR),
        ("vgg", 160, VGG_128 + LINEAR.replace("8192", "12800")),
        ("unet", 128, UNET),
    ],
)
def test_names_and_shapes(name, patch, text):
    with torch.device("meta"):
        state = build_discriminator(name, patch).state_dict()
    assert {key: tuple(value.shape) for key, value in state.items()} == listed(text)


def by_hand(name, state, x):
    """The networks in words of `F`, for evaluation mode."""

    def conv(x, key, stride=1):
        weight = state.get(f"{key}.weight")
        if weight is None:
            original = state[f"{key}.weight_orig"]
            sigma = state[f"{key}.weight_u"] @ original.reshape(len(original), -1) @ state[f"{key}.weight_v"]
            weight = original / sigma
        return F.conv2d(x, weight, state.get(f"{key}.bias"), stride, padding=1)

    def norm(x, key):
        kinds = ("running_mean", "running_var", "weight", "bias")
        mean, variance, weight, bias = (state[f"{key}.{kind}"][:, None, None] for kind in kinds)
        return (x - mean) / (variance + 1e-5).sqrt() * weight + bias

    def leaky(x):
        return torch.where(x > 0, x, 0.2 * x)

    def up(x):
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)

    if name == "vgg":
        x = leaky(conv(x, "conv0_0"))
        x = leaky(norm(conv(x, "conv0_1", 2), "bn0_1"))
        stage = 1
        while f"conv{stage}_0.weight" in state:
            x = leaky(norm(conv(x, f"conv{stage}_0"), f"bn{stage}_0"))
            x = leaky(norm(conv(x, f"conv{stage}_1", 2), f"bn{stage}_1"))
            stage += 1
        x = leaky(F.linear(x.flatten(1), state["linear1.weight"], state["linear1.bias"]))
        return F.linear(x, state["linear2.weight"], state["linear2.bias"])
    x0 = leaky(conv(x, "conv0"))
    x1 = leaky(conv(x0, "conv1", 2))
    x2 = leaky(conv(x1, "conv2", 2))
    x3 = leaky(conv(x2, "conv3", 2))
    x4 = leaky(conv(up(x3), "conv4")) + x2
    x5 = leaky(conv(up(x4), "conv5")) + x1
    x6 = leaky(conv(up(x5), "conv6")) + x0
    return conv(leaky(conv(leaky(conv(x6, "conv7")), "conv8")), "conv9")


@pytest.mark.parametrize(("name", "patch"), [("vgg", 16), ("vgg", 20), ("vgg", 48), ("unet", 8), ("unet", 24)])
def test_logits_and_gradients(name, patch):
    model = small(name, patch).double()
    for _ in range(3):  # so that statistics and vectors are not where they start
        model(torch.rand(4, 3, patch, patch, dtype=torch.float64))
    model.eval()
    image = torch.rand(2, 3, patch, patch, dtype=torch.float64, requires_grad=True)
    found, expected = model(image), by_hand(name, dict(model.named_parameters()) | dict(model.named_buffers()), image)
    assert found.shape == ((2, 1) if name == "vgg" else (2, 1, patch, patch))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    wanted, grad = [image, *model.parameters()], torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, wanted, grad), torch.autograd.grad(expected, wanted, grad), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_an_image_of_any_multiple_of_eight():
    assert small("unet")(torch.rand(1, 3, 16, 40)).shape == (1, 1, 16, 40)


def test_what_a_logit_of_the_unet_sees():
    model = small("unet").double().eval()
    image = torch.rand(1, 3, 96, 96, dtype=torch.float64, requires_grad=True)
    logits = model(image)
    extents = []
    for place in range(44, 52):  # all phases of the three halvings
        (grad,) = torch.autograd.grad(logits[0, 0, place, place], image, retain_graph=True)
        rows = grad.abs().sum(dim=(0, 1, 3)).nonzero()
        extents.append(int(rows.max() - rows.min()) + 1)
    # Conv9, 8, 7 and 6 see 9 rows; from there each doubling and conv5 and conv4 see 6 + 2 and 6 + 2, of conv3 6 rows at
    # most, 8 pixels apart, each of which sees 24.
    assert max(extents) == 64


def test_a_logit_of_the_vgg_sees_everything():
    model = small("vgg", 32).double().eval()
    image = torch.rand(1, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    (grad,) = torch.autograd.grad(model(image).sum(), image)
    assert (grad != 0).all()


ALLOWED = {"vgg": (16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512), "unet": (8, 24, 64)}
REFUSED = {"vgg": (0, -64, 8, 12, 15, 17, 18, 30, 36, 63, 65, 72, 100, 144, 255), "unet": (0, -8, 4, 12, 63, 65, 100)}


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_patch_sizes(name):
    for patch in ALLOWED[name]:
        assert build_discriminator(name, patch, features=1).eval()(torch.empty(1, 3, patch, patch)).shape[0] == 1
    for patch in REFUSED[name]:
        with pytest.raises(ValueError, match=rf"discriminator takes patches .* not of {patch}$"):
            build_discriminator(name, patch)


@pytest.mark.parametrize(
    ("name", "shape"), [("vgg", (16, 32)), ("vgg", (32, 32)), ("unet", (16, 20)), ("unet", (4, 8))]
)
def test_images_of_another_size_are_refused(name, shape):
    with pytest.raises(ValueError, match=r"x has shape \(1, 3, "):
        small(name)(torch.rand(1, 3, *shape))


def test_what_is_no_discriminator_is_refused():
    with pytest.raises(ValueError, match="no discriminator 'patch'; there are vgg, unet"):
        build_discriminator("patch", 64)
    for name in DISCRIMINATORS:
        with pytest.raises(ValueError, match="at least one channel and feature"):
            build_discriminator(name, 64, features=0)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views(name, dtype):
    """Frozen, it takes no gradient, changes nothing, lets no image see another, and follows what trains."""
    model = small(name).to(memory_format=torch.channels_last)
    view, frozen = AutocastModule(model, dtype), FrozenModule(model, dtype)
    images = torch.rand(4, 3, 16, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        view(images).float().square().mean().backward()
        optimizer.step()
    frozen.refresh()
    before = copy.deepcopy(model.state_dict())
    given = images.clone().requires_grad_()
    logits = frozen(given)
    logits.float().sum().backward()
    assert given.grad.isfinite().all()
    assert given.grad.abs().sum() > 0
    alone = torch.cat([frozen(image[None]) for image in images])
    torch.testing.assert_close(logits, alone, rtol=1e-4 if dtype == torch.float32 else 3e-2, atol=1e-5)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model.training
    exact = copy.deepcopy(model).double().eval()(images.double())
    error = (logits.double() - exact).abs().max() / exact.abs().max()
    assert error < (1e-5 if dtype == torch.float32 else 3e-2)


@pytest.mark.parametrize("name", DISCRIMINATORS)
def test_nan_propagates(name):
    image = torch.rand(2, 3, 16, 16)
    image[1, 0, 8, 8] = torch.nan
    logits = small(name).eval()(image)
    assert logits[0].isfinite().all()
    assert logits[1].isnan().any()


@pytest.mark.parametrize(("name", "patch"), [("vgg", 16), ("vgg", 40), ("vgg", 256), ("unet", 64)])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files(tmp_path, name, patch, suffix):
    model = build_discriminator(name, patch, features=1 if patch == 256 else 2)
    path = tmp_path / f"d{suffix}"
    state = model.state_dict()
    save_file(state, path) if suffix == ".safetensors" else torch.save({"params": state}, path)
    loaded = load_discriminator(path)
    assert type(loaded) is type(model)
    assert loaded.training
    assert all(weight.requires_grad for weight in loaded.parameters())
    for key, value in loaded.state_dict().items():
        assert value.dtype == state[key].dtype, key
        assert torch.equal(value, state[key]), key
    image = torch.rand(2, 3, patch, patch)
    torch.testing.assert_close(loaded.eval()(image), model.eval()(image))


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("vgg", lambda state: state.pop("bn1_0.running_var"), "bn1_0.running_var"),
        ("vgg", lambda state: state.pop("linear1.weight"), "linear1.weight"),
        ("vgg", lambda state: state.update({"conv0_0.weight": torch.rand(2)}), "convolutional"),
        ("vgg", lambda state: state.update({"linear1.weight": torch.rand(100, 65)}), "linear1.weight"),
        ("vgg", lambda state: state.update({"linear1.weight": torch.rand(100, 4)}), "takes patches"),
        ("vgg", lambda state: state.update({"linear2.bias": torch.zeros(1, dtype=torch.int8)}), "quantised"),
        ("vgg", lambda state: state.update({"conv0_0.weight": torch.rand(0, 3, 3, 3)}), "at least one"),
        ("unet", lambda state: state.pop("conv3.weight_u"), "conv3.weight_u"),
        ("unet", lambda state: state.update({"conv9.bias": torch.rand(2)}), "conv9.bias"),
        ("unet", lambda state: state.update(more=torch.rand(2)), "more"),
        ("unet", lambda state: state.pop("conv0.weight"), "unknown architecture"),
    ],
)
def test_damaged_files_are_refused(tmp_path, name, change, said):
    state = small(name).state_dict()
    change(state)
    path = tmp_path / "d.pth"
    torch.save(state, path)
    with pytest.raises(ModelError, match=r"d\.pth: ") as caught:
        load_discriminator(path)
    assert said in str(caught.value)


def test_generators_and_discriminators_are_not_taken_for_each_other(tmp_path):
    save_model(Compact(2, features=4, convs=1), tmp_path / "g.pth")
    with pytest.raises(
        ModelError, match=r"g\.pth: an unknown architecture .*VGGStyleDiscriminator.*UNetDiscriminatorSN"
    ):
        load_discriminator(tmp_path / "g.pth")
    for kind in (VGGStyleDiscriminator(16, features=2), UNetDiscriminatorSN(features=2)):
        torch.save(kind.state_dict(), tmp_path / "d.pth")
        with pytest.raises(ModelError, match=r"d\.pth: an unknown architecture"):
            load_model(tmp_path / "d.pth")


def test_truncated_and_missing_files(tmp_path):
    path = tmp_path / "d.pth"
    with pytest.raises(FileNotFoundError, match=r"d\.pth: no such file"):
        load_discriminator(path)
    torch.save(small("unet").state_dict(), path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ModelError, match=r"d\.pth: .*truncated"):
        load_discriminator(path)
