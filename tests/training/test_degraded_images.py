"""Images degraded by attacks, and their parts."""

import pytest
import torch
from study_images import photograph

from andfast.data.tensors import to_tensor
from andfast.losses import l1_objective, no_objective
from andfast.models import build_generator
from andfast.ops.blur_pool import blur_pool
from andfast.ops.theta_layout import ThetaLayout
from andfast.training.degraded_images import ATTACKED, CLEAN, GROUP_LABELS, LENS, degrade, draw_degraded, group_columns
from andfast.training.options import parse_config

SETTINGS = {"degradation.channels": 8, "degradation.blocks": 2, "attack.steps": 1}
LENS_OPTION = {"attack.lens": "{blur: [2, 4], sharpen: [1, 2]}"}


def config(**changed):
    return parse_config([f"--{key}={value}" for key, value in (SETTINGS | changed).items()])


@pytest.fixture(scope="module")
def objective():
    torch.manual_seed(0)
    return l1_objective(build_generator("compact", 4, features=8, convs=1).eval().requires_grad_(False))


@pytest.fixture(scope="module")
def hr():
    return torch.cat([to_tensor(photograph(seed, size=32)) for seed in range(2)])


def distance(a, b):
    return (a - b).square().mean(dim=(1, 2, 3)).sqrt()


def decibels(value):
    return 10 ** (-value / 20)


def test_without_a_lens_the_attack_starts_at_the_clean_image(hr, objective):
    made = degrade(hr, config(**{"attack.psnr_range": "[30, 30]"}), objective, 2)
    assert list(made) == [CLEAN, ATTACKED]
    torch.testing.assert_close(made[CLEAN], blur_pool(hr, 4))
    assert (distance(made[ATTACKED], made[CLEAN]) > 0.5 * decibels(30)).all()
    assert (distance(made[ATTACKED], made[CLEAN]) < 1.01 * decibels(30)).all()


def test_the_lens_image_is_that_of_the_attack_s_lens(hr, objective):
    made = degrade(hr, config(**LENS_OPTION, **{"attack.psnr_range": "[50, 50]"}), objective, 2)
    assert list(made) == [CLEAN, LENS, ATTACKED]
    torch.testing.assert_close(made[CLEAN], blur_pool(hr, 4))
    assert (distance(made[ATTACKED], made[LENS]) < 1.01 * decibels(50)).all()
    assert (distance(made[LENS], made[CLEAN]) > 0.02).all()
    assert not torch.equal(made[ATTACKED], made[LENS])
    noise = {"attack.method": "noise", "attack.psnr_range": "[50, 50]"}
    made = degrade(hr, config(**LENS_OPTION, **noise), objective, 2)
    assert list(made) == [CLEAN, LENS, ATTACKED]
    assert (distance(made[ATTACKED], made[LENS]) < 1.01 * decibels(50)).all()


@pytest.mark.parametrize("options", [{}, LENS_OPTION])
def test_the_identity_is_where_the_search_begins(hr, objective, options):
    searched = degrade(hr, config(**options), objective, 2, number=3)
    still = degrade(hr, config(**options), no_objective, 2, number=3, identity=True)
    assert list(still) == list(searched)[:-1]
    assert all(torch.equal(still[label], searched[label]) for label in still)


@pytest.mark.parametrize(("networks", "alike"), [(2, False), (1, True)])
def test_images_share_networks_as_configured(hr, objective, networks, alike):
    twice = hr[:1].expand(2, -1, -1, -1)
    first, second = degrade(twice, config(**LENS_OPTION), objective, networks)[LENS]
    assert torch.equal(first, second) == alike


def test_seed_and_number_decide(hr, objective):
    def found(number, **options):
        return degrade(hr, config(**options), objective, 2, number)[ATTACKED]

    assert torch.equal(found(0), found(0))
    assert not torch.equal(found(0), found(1))
    assert not torch.equal(found(0), found(0, seed=1))


@pytest.mark.parametrize(("method", "labels"), [("noise", [CLEAN, LENS, ATTACKED]), ("bsrgan", [CLEAN, ATTACKED])])
def test_an_attack_without_networks_has_no_parts(hr, objective, method, labels):
    made = degrade(hr, config(**LENS_OPTION, **{"attack.method": method}), objective, 2, parts=True)
    assert list(made) == labels


@pytest.mark.parametrize("options", [{}, LENS_OPTION])
def test_parts_are_the_groups_that_may_deviate(hr, objective, options):
    made = degrade(hr, config(**options), objective, 2, parts=True)
    types = [label for label in made if label in GROUP_LABELS.values()]
    assert types == ["blur alone", "noise alone", "slopes alone"]
    whole = degrade(hr, config(**options), objective, 2)
    assert all(torch.equal(whole[label], made[label]) for label in whole)


@pytest.mark.parametrize("alone", GROUP_LABELS)
def test_the_part_of_the_only_free_group_is_the_attack(hr, objective, alone):
    """The factors of all other groups are infinite."""
    factors = {f"attack.scale_factors.{name}": 1 if name == alone else ".inf" for name in GROUP_LABELS}
    made = degrade(hr, config(**factors, **LENS_OPTION), objective, 2, parts=True)
    assert [label for label in made if label in GROUP_LABELS.values()] == [GROUP_LABELS[alone]]
    torch.testing.assert_close(made[GROUP_LABELS[alone]], made[ATTACKED], rtol=0, atol=1e-5)
    assert (distance(made[ATTACKED], made[LENS]) > 1e-3).all()


def test_columns_of_groups():
    """They are those of the layout's segments and moments."""
    layout = ThetaLayout((8, 12), 2, channels=4, blocks=1)
    found = {name: group_columns(layout, name) for name in GROUP_LABELS}
    assert torch.stack(list(found.values())).sum(0).eq(1).all()  # each column is one group's
    groups = layout.groups
    assert found["noise"].nonzero().flatten().tolist() == list(range(groups["noise"].start, groups["noise"].stop))
    assert found["slope"].nonzero().flatten().tolist() == list(range(groups["slope"].start, groups["slope"].stop))
    moments = {"conv_dc": [0], "conv_shift": [1, 2], "conv": list(range(3, 9))}
    for name, wanted in moments.items():
        taps = found[name][groups["conv"]].unflatten(0, (-1, 9))
        assert all(row.nonzero().flatten().tolist() == wanted for row in taps)


def test_the_sheet_shows_the_images(hr, objective):
    made = degrade(hr, config(**LENS_OPTION), objective, 2, parts=True)
    sheet = draw_degraded(hr, made, None)
    assert sheet.shape == (2 * 36 + 22, 7 * 36 + 4, 3)
    cell = sheet[22 : 22 + 32, 4 : 4 + 32]
    assert abs(cell / 255 - hr[0].permute(1, 2, 0).numpy()).max() < 0.51 / 255


@pytest.mark.parametrize(
    ("size", "networks", "options", "said"),
    [
        (32, 2, {"attack.method": "pairs", "attack.mix.pairs": "x"}, "pairs: that degrades no images"),
        (32, 3, {}, "num_networks is 3; it must divide the batch size, 2"),
        (30, 2, {}, "multiples of 4"),
        (4, 2, {}, "8 at least"),
    ],
)
def test_invalid_combinations_are_refused(hr, size, networks, options, said):
    with pytest.raises(ValueError, match=said):
        degrade(hr[..., :size], config(**options), no_objective, networks)
