"""Settings of losses and discriminator: read from the command line, refused by name, built."""

from dataclasses import dataclass, field

import pytest
import torch
import yaml
from jsonargparse import ArgumentParser
from safetensors.torch import save_file
from vgg_file import write_vgg

from andfast.losses import (
    GAN_LOSSES,
    PERCEPTUAL_WEIGHTS,
    AdversarialLoss,
    PerceptualLoss,
    charbonnier_loss,
    frequency_loss,
    l1_loss,
)
from andfast.models import DISCRIMINATORS, ModelError, build_discriminator, load_vgg_features
from andfast.models.frozen import FrozenModule
from andfast.training.config import plain
from andfast.training.loss_config import DiscriminatorConfig, LossConfig
from andfast.utils.yaml_files import dump_yaml


@dataclass
class Nested:
    """As a run's configuration holds them.

    Attributes:
        loss: the losses.
        discriminator: the discriminator.
    """

    loss: LossConfig = field(default_factory=LossConfig)
    discriminator: DiscriminatorConfig = field(default_factory=DiscriminatorConfig)


def parse(*arguments: str) -> Nested:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Nested)
    values = parser.instantiate(parser.parse_args(arguments))
    return Nested(values.loss, values.discriminator)


def test_the_default_is_l1_alone():
    config = parse()
    assert config == Nested()
    config.loss.check(config.discriminator, patch_size=66)  # which no discriminator would take
    loss = config.loss.build(None, None)
    restored, hr = torch.rand(2, 3, 6, 6), torch.rand(2, 3, 6, 6)
    assert torch.equal(loss(restored, hr), l1_loss(restored, hr))


def test_read_from_options_and_files_and_written(tmp_path):
    config = parse(
        *("--loss.perceptual", "1", "--loss.vgg", "download", "--loss.gan=0.1", "--loss.gan_loss", "hinge"),
        *("--loss.perceptual_layers", '{"conv1_2": 0.5, "conv5_4": 2}', "--discriminator.name", "unet"),
    )
    assert config.loss.perceptual_layers == {"conv1_2": 0.5, "conv5_4": 2}
    assert (config.loss.perceptual, config.loss.gan, config.discriminator.name) == (1, 0.1, "unet")
    file = tmp_path / "config.yaml"
    file.write_text(dump_yaml(plain(config)))
    assert yaml.safe_load(file.read_text())["loss"]["perceptual_layers"] == {"conv1_2": 0.5, "conv5_4": 2}
    assert parse("--config", str(file)) == config


def test_the_choices_are_the_registered_ones():
    assert LossConfig().perceptual_layers == PERCEPTUAL_WEIGHTS
    assert LossConfig().perceptual_layers is not LossConfig().perceptual_layers
    for name in DISCRIMINATORS:
        assert parse("--discriminator.name", name).discriminator.name == name
    for name, kind in GAN_LOSSES.items():
        assert type(parse("--loss.gan_loss", name).loss.gan_kind()) is kind


def test_charbonnier_and_frequencies():
    config = parse("--loss.pixel=charbonnier", "--loss.charbonnier_eps=0.01", "--loss.frequency=0.5")
    assert config.loss.describe() == "Charbonnier (eps 0.01) + 0.5 frequency"
    restored, hr = torch.rand(2, 2, 3, 6, 6)
    expected = charbonnier_loss(restored, hr, 0.01) + 0.5 * frequency_loss(restored, hr)
    assert torch.equal(config.loss.build(None, None)(restored, hr), expected)


def test_matching_is_the_distance_of_the_discriminator_s_features():
    """Here by hooks on the convolutions whose leaky outputs are compared; as a 1-norm, a mean over each map."""
    settings = LossConfig(gan=0.1, matching=0.5)
    settings.check(DiscriminatorConfig("unet"), patch_size=16)
    assert "+ 0.5 matching of the discriminator's features" in settings.describe()
    module = build_discriminator("unet", 16, features=4).eval()
    restored, hr = torch.rand(2, 2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    restored.requires_grad_()
    maps: list[torch.Tensor] = []
    hooks = [
        getattr(module, name).register_forward_hook(
            lambda *found: maps.append(torch.nn.functional.leaky_relu(found[2].clone(), 0.2))
        )
        for name in ("conv0", "conv1", "conv2", "conv3", "conv8")
    ]
    logits = [module(images) for images in (restored, hr)]
    for hook in hooks:
        hook.remove()
    matching = sum((one - other).abs().mean(dim=(1, 2, 3)) for one, other in zip(maps[:5], maps[5:], strict=True))
    expected = l1_loss(restored, hr) + 0.1 * -torch.nn.functional.logsigmoid(logits[0]).mean(dim=(1, 2, 3))
    expected = expected + 0.5 * matching
    loss = settings.build(None, FrozenModule(module, torch.float32))
    assert list(loss.terms(restored, hr)) == ["l1", "gan", "matching"]
    torch.testing.assert_close(loss(restored, hr), expected)
    gradients = [torch.autograd.grad(value.sum(), restored)[0] for value in (loss(restored, hr), expected)]
    torch.testing.assert_close(*gradients)


REFUSED = [
    (
        LossConfig(matching=1),
        {},
        "loss.matching is 1, .* needs loss.gan above 0 and discriminator.name unet, which are 0",
    ),
    (LossConfig(matching=1, gan=0.1), {"patch_size": 64}, "loss.matching is 1, .* which are 0.1 and vgg"),
    (LossConfig(perceptual=1), {}, "loss.perceptual is 1 and loss.vgg null.*vgg19-dcbb9e9d.pth.*download"),
    (LossConfig(perceptual=1, vgg="f", perceptual_layers={"conv1_2": 0.0}), {}, "loss.perceptual is 1; no layer of"),
    (
        LossConfig(perceptual=1, vgg="f", perceptual_layers={"conv6_1": 0.0}),
        {},
        "loss.perceptual_layers has conv6_1; VGG19",
    ),
    (LossConfig(perceptual=1, vgg="f"), {"patch_size": 8}, "train.patch_size is 8; the deepest .* at least 16"),
    (LossConfig(gan=0.1), {"patch_size": 72}, "train.patch_size is 72; discriminator.name vgg: .*112, 128"),
    (LossConfig(gan=0.1), {"name": "unet", "patch_size": 60}, "train.patch_size is 60; .*name unet: .*multiple of 8"),
    (LossConfig(gan=0.1), {"micro_batch": 2}, "train.micro_batch is 2; discriminator.name vgg looks at all images"),
    (
        LossConfig(gan=0.1, gan_loss="relativistic"),
        {"name": "unet", "micro_batch": 2},
        "train.micro_batch is 2; loss.gan_loss relativistic looks",
    ),
]


@pytest.mark.parametrize(("loss", "others", "said"), REFUSED)
def test_invalid_combinations_are_refused_by_name(loss, others, said):
    options = {"patch_size": 64, "name": "vgg", "micro_batch": None} | others
    with pytest.raises(ValueError, match=said):
        loss.check(DiscriminatorConfig(options["name"]), options["patch_size"], options["micro_batch"])


def test_valid_combinations():
    LossConfig(perceptual=1, vgg="f", perceptual_layers={"conv1_2": 1.0}).check(DiscriminatorConfig(), 6)
    LossConfig(perceptual=1, vgg="f", gan=0.1, gan_loss="relativistic").check(DiscriminatorConfig(), 256)
    LossConfig(gan=0.1).check(DiscriminatorConfig("unet"), 72, micro_batch=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_whole_loss(tmp_path, dtype):
    write_vgg(tmp_path / "vgg.pth")
    settings = LossConfig(perceptual=1, vgg=str(tmp_path / "vgg.pth"), perceptual_layers={"conv2_1": 1.0}, gan=0.1)
    torch.manual_seed(0)
    discriminator = FrozenModule(DiscriminatorConfig(features=2).build(16), dtype)
    loss = settings.build(settings.load_features(torch.device("cpu"), dtype), discriminator)
    restored, hr = torch.rand(2, 3, 16, 16, requires_grad=True), torch.rand(2, 3, 16, 16)
    with loss.step(hr):
        value = loss(restored, hr)
    perceptual = PerceptualLoss(load_vgg_features(tmp_path / "vgg.pth", ["conv2_1"], dtype=dtype), {"conv2_1": 1.0})
    adversarial = AdversarialLoss(discriminator, GAN_LOSSES["vanilla"]())
    expected = l1_loss(restored, hr) + perceptual(restored, hr) + 0.1 * adversarial(restored, hr)
    torch.testing.assert_close(value, expected)
    assert torch.autograd.grad(value.sum(), restored)[0].isfinite().all()


def test_missing_files_and_networks_are_refused_when_built(tmp_path):
    device = torch.device("cpu")
    with pytest.raises(FileNotFoundError, match=r"no-vgg\.pth: no such file.*vgg19-dcbb9e9d"):
        LossConfig(perceptual=1, vgg=str(tmp_path / "no-vgg.pth")).load_features(device, torch.float32)
    with pytest.raises(ValueError, match=r"loss\.perceptual is 1; it needs VGG19's features"):
        LossConfig(perceptual=1, vgg="f").build(None, None)
    with pytest.raises(ValueError, match=r"loss\.gan is 0\.1; it needs a discriminator"):
        LossConfig(gan=0.1).build(None, None)


@pytest.mark.parametrize(("name", "patch"), [("vgg", 32), ("unet", 40)])
def test_discriminators(tmp_path, name, patch):
    model = DiscriminatorConfig(name, features=2).build(patch)
    assert isinstance(model, DISCRIMINATORS[name])
    file = tmp_path / "d.safetensors"
    save_file(model.state_dict(), file)
    loaded = DiscriminatorConfig(name, init=str(file)).build(patch)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    assert DiscriminatorConfig(name).build(patch).features == 64


def test_weights_that_do_not_fit_are_refused_by_name(tmp_path):
    file = tmp_path / "d.pth"
    torch.save(build_discriminator("vgg", 32, features=2).state_dict(), file)

    def refused(said, patch=32, **settings):
        with pytest.raises(ValueError, match=rf"discriminator.init .*d\.pth: {said}"):
            DiscriminatorConfig(**{"init": str(file)} | settings).build(patch)

    refused("a VGGStyleDiscriminator; discriminator.name is unet", name="unet")
    refused("a network of 2 features; discriminator.features is 64", features=64)
    refused("a discriminator of patches of 32; train.patch_size is 64", patch=64)
    torch.save(build_discriminator("vgg", 32, features=2, in_channels=1).state_dict(), file)
    refused("a discriminator of images with 1 channel; RGB has 3")
    file.write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"d\.pth: .*truncated"):
        DiscriminatorConfig(init=str(file)).build(32)
