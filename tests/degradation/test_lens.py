"""What cameras do to a scene before the degradation networks see it."""

import numpy as np
import pytest
import scipy.ndimage
import torch
from adversaries import Upsampler, make, photographs, seeded, squared_error

from andfast.attack import PGD, YOPO, Attack, FreeAT, Lens, RandomDeviation, StyleShift, SubsetPGD
from andfast.training.options import parse_config
from andfast.utils.yaml_files import dump_yaml

OBJECTIVE = squared_error(Upsampler(2))
ATTACKS = [
    PGD(steps=2, lens=Lens()),
    YOPO(steps=1, lens=Lens()),
    FreeAT(replays=2, lens=Lens()),
    RandomDeviation(lens=Lens()),
]


def test_a_lens_blurs_and_sharpens_as_scipy_does() -> None:
    hr = torch.rand(4, 3, 40, 33, dtype=torch.float64, generator=seeded())
    lens = Lens(blur=(1.5, 1.5), sharpen=(0.7, 0.7), sharpen_radius=2.0)
    found = lens(hr, 4)
    for image, seen in zip(hr.numpy().reshape(-1, 40, 33), found.numpy().reshape(-1, 40, 33), strict=True):
        blurred = scipy.ndimage.gaussian_filter(image, 1.5, mode="mirror", radius=6)
        smooth = scipy.ndimage.gaussian_filter(blurred, 2.0, mode="mirror", radius=8)
        np.testing.assert_allclose(seen, (blurred + 0.7 * (blurred - smooth)).clip(0, 1), atol=1e-6)


def test_nothing_is_what_no_blur_and_no_sharpening_do() -> None:
    hr = torch.rand(2, 3, 24, 24, generator=seeded())
    torch.testing.assert_close(Lens((0.0, 0.0), (0.0, 0.0))(hr, 2), hr)


def test_each_camera_has_its_own_lens_and_the_ranges_are_filled() -> None:
    # An impulse's middle is 1 / (2 pi sigma^2), nearly.
    impulse = torch.zeros(128, 1, 33, 33)
    impulse[:, :, 16, 16] = 1
    found = Lens((1.0, 2.0), (0.0, 0.0))(impulse, 64, seeded())[:, 0, 16, 16].view(64, 2)
    assert torch.equal(found[:, 0], found[:, 1])
    sigma = (2 * torch.pi * found[:, 0]).rsqrt()
    assert 0.98 < sigma.min() < 1.1
    assert 1.9 < sigma.max() < 2.02


def test_seeds_decide() -> None:
    hr = photographs()
    first, again, other = (Lens()(hr, 4, seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    "attack", [*ATTACKS, SubsetPGD(share=0.5, lens=Lens())], ids=lambda attack: type(attack).__name__
)
def test_the_network_sees_images_through_the_lens_and_the_generator_is_judged_by_the_hr_images(attack: Attack) -> None:
    network, hr = make(), photographs()
    targets = []

    def objective(lr, target):
        targets.append(target)
        return OBJECTIVE(lr, target)

    result = attack(network, hr, objective, seeded(7))
    seen = Lens()(hr, 1, seeded(7))
    expected = network(seen, result.delta)
    torch.testing.assert_close(result.lr, expected, atol=2e-5, rtol=0)
    assert all(torch.equal(target, hr[: len(target)]) for target in targets)
    torch.testing.assert_close(result.loss_before, OBJECTIVE(network(seen), hr)[: len(targets[0])].mean()[None])
    assert torch.equal(result.clean, network.clean(seen))
    mse = (result.lr - network.clean(seen)).square().mean()
    torch.testing.assert_close(result.lr_psnr, -10 * mse.log10()[None])


def test_the_adversary_beats_the_lens_alone() -> None:
    hr, network = photographs(), make(num_networks=4)
    result = PGD(steps=3, lens=Lens())(network, hr, OBJECTIVE, seeded(7))
    assert (result.loss_after > result.loss_before).all()


def test_random_networks_see_through_it_too() -> None:
    hr = photographs()
    with_lens, without = (StyleShift(steps=1, lens=lens)(make(), hr, OBJECTIVE, seeded(3)) for lens in (Lens(), None))
    assert not torch.equal(with_lens.lr, without.lr)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blur": (2.0, 1.0)}, r"blur is \[2.0, 1.0\]"),
        ({"blur": (-1.0, 1.0)}, "blur is"),
        ({"sharpen": (0.0, float("inf"))}, "sharpen is"),
        ({"sharpen_radius": 0.0}, "sharpen_radius is 0.0"),
    ],
)
def test_what_is_no_lens_is_named(arguments, message) -> None:
    with pytest.raises(ValueError, match=message):
        Lens(**arguments)


def test_a_configuration_takes_a_lens_whole_or_in_parts_and_gives_it_back(tmp_path) -> None:
    assert parse_config([]).attack.lens is None
    whole = parse_config(["--attack.lens", "{blur: [1, 2], sharpen: [0, 0.5], sharpen_radius: 3}"])
    assert whole.attack.build().lens == Lens((1.0, 2.0), (0.0, 0.5), 3.0)
    assert parse_config(["--attack.lens.sharpen", "[0, 1]"]).attack.lens == Lens(sharpen=(0.0, 1.0))
    settled = tmp_path / "config.yaml"
    settled.write_text(dump_yaml(whole.to_dict()))
    assert parse_config(["--config", str(settled)]).attack == whole.attack


def test_a_wrong_lens_in_a_configuration_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_config(["--attack.lens.blur", "[3, 2]"])
    assert "blur is [3.0, 2.0]" in capsys.readouterr().err
