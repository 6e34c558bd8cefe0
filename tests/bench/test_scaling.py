"""The calculation of how training scales, and docs/scaling.md, which quotes it."""

import json
import math
import re
from functools import partial
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from andfast import RRDBNet
from andfast.models import VGGFeatures, build_discriminator
from andfast.models.spectral_norm import SpectralNormConv2d
from andfast.training.distributed import World
from bench import scaling

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "scaling.md"


RECORD = json.loads(scaling.RESULT.read_text())
GIVEN = SimpleNamespace(**RECORD["assumptions"])
COUNTS = SimpleNamespace(**RECORD["counts"])


def test_the_generator_is_counted_by_its_weights():
    weights = dict(RRDBNet().named_parameters())
    sides = {"conv_up1": 128, "conv_up2": 256, "conv_hr": 256, "conv_last": 256}
    macs = sum(
        weight.numel() * sides.get(name.split(".")[0], 64) ** 2 for name, weight in weights.items() if weight.ndim == 4
    )
    assert COUNTS.macs["G"] == macs
    assert f"RRDBNet with 23 blocks {macs / 1e9:.1f}" in (ROOT / "docs" / "performance.md").read_text()
    assert COUNTS.parameters["G"] == sum(weight.numel() for weight in weights.values())


def test_the_features_are_counted_by_their_weights():
    with torch.device("meta"):
        features = VGGFeatures().features
    blocks = [64, 128, 256, 512, 512]
    layers = [
        (layer.weight.numel(), block)
        for layer, block in zip(features.values(), [0, 0, 1, 1] + [2] * 4 + [3] * 4 + [4] * 4, strict=True)
    ]
    assert [layer.out_channels for layer in features.values()] == [blocks[block] for _, block in layers]
    assert COUNTS.macs["VGG19"] == sum(weights * (256 >> block) ** 2 for weights, block in layers)


@pytest.mark.parametrize("name", ["vgg", "unet"])
def test_discriminators_are_counted_by_what_their_layers_give(name):
    discriminator = build_discriminator(name, 256).eval()
    macs = []

    def add(layer: nn.Module, _: object, result: torch.Tensor) -> None:
        weight = layer.weight_orig if isinstance(layer, SpectralNormConv2d) else layer.weight
        macs.append(weight.numel() * math.prod(result.shape[2:]))

    for layer in discriminator.modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, SpectralNormConv2d)):
            layer.register_forward_hook(add)
    with torch.no_grad():
        discriminator(torch.zeros(1, 3, 256, 256))
    power = sum(layer.weight_orig.numel() for layer in discriminator.modules() if isinstance(layer, SpectralNormConv2d))
    assert sum(macs) <= COUNTS.macs[f"D {name}"] <= sum(macs) + 2 * power  # and the spectral norms
    assert COUNTS.parameters[f"D {name}"] == sum(weight.numel() for weight in discriminator.parameters())


def test_the_degradation_network_is_counted_by_its_layers():
    high, low, width = 256**2, 64**2, 64
    convs = 9 * (3 * width * (high + low) + width**2 * (4 * high + 5 * low))
    # Beside the nine taps of the deviation the identity's centre is a tap of its own; and there are the pooling over
    # 6 x 6 pixels and each kernel's way from moments to taps.
    assert COUNTS.macs["F"] == convs * 10 // 9 + 36 * width * low + 81 * (2 * 3 * width + 9 * width**2)
    for page, sentence in (
        ("performance", "a pass of F is {:.1f} GMAC"),
        ("scaling", "as one convolution it would be {:.1f}."),
    ):
        assert sentence.format(convs / 1e9) in " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
    taps = 9 * (2 * 3 * width + 9 * width**2)
    assert COUNTS.parameters["F"] == taps + 5 * (high + low) + 10
    assert COUNTS.centres == 3 * width + 9 * width**2


def test_all_reduces_take_as_long_as_their_messages():
    given = SimpleNamespace(
        machine=4, nvlink=100e9, network=10e9, slow_network=1e9, link_share=1.0, nvlink_hop=1e-6, network_hop=1e-5
    )
    # Every GPU sends 2 x 3 quarters of the bytes, one after the other.
    inside = 6 * (25e6 / 100e9 + 1e-6)
    assert scaling.all_reduce(1e8, 1, scaling.FAST, given) == 0
    assert scaling.all_reduce(1e8, 4, scaling.FAST, given) == pytest.approx(inside)
    # A quarter of the bytes goes between two machines: half of it there and half of it back.
    assert scaling.all_reduce(1e8, 8, scaling.FAST, given) == pytest.approx(inside + 25e6 / 10e9 + 2e-5)
    # Many machines and few bytes: up and down ten levels, instead of 1023 neighbours twice.
    assert scaling.all_reduce(4, 4096, scaling.FAST, given) == pytest.approx(6e-6 + 20e-5, rel=1e-3)
    # A backward pass hides all but the last bucket.
    size, mib = 60.5 * 2**20, 2**20
    pieces = [1 * mib, 25 * mib, 25 * mib, 9.5 * mib]
    times = [scaling.all_reduce(piece, 16, scaling.FAST, given) for piece in pieces]
    reduce_times = partial(scaling.reduce_times, size, 16, scaling.FAST, given)
    assert reduce_times(0.0) == pytest.approx((sum(times), sum(times)))
    assert reduce_times(100.0) == pytest.approx((sum(times), times[-1]))
    backward = 1.2 * sum(times)
    known = [backward * part / size for part in accumulate(pieces)]
    assert reduce_times(backward)[1] == pytest.approx(max(known[k] + sum(times[k:]) for k in range(4)) - backward)


def test_multiprocessors_are_busy_by_whole_waves():
    given = SimpleNamespace(multiprocessors=30, tile=128)  # an image of 64 x 64 has 32 tiles
    assert scaling.busy(1, given) == 32 / 60
    assert scaling.busy(15, given) == 1


def test_assumptions_are_the_configurations_and_the_papers():
    config = yaml.safe_load((ROOT / "configs" / "andnet_x4.yaml").read_text())
    assert (GIVEN.batch, GIVEN.save_every) == (config["train"]["batch_size"], config["train"]["save_every"])
    assert (GIVEN.steps, config["scale"], config["train"]["patch_size"]) == (config["attack"]["steps"], 4, 256)
    assert GIVEN.images * GIVEN.machine == GIVEN.batch


def test_the_command_prints_what_is_calculated(capsys):
    scaling.main([])
    for part, numbers in json.loads(capsys.readouterr().out).items():
        assert flat(RECORD[part]) == pytest.approx(flat(numbers)), part
    scaling.main(["--share", "1"])
    step = json.loads(capsys.readouterr().out)["steps"]["ANDNet"]
    assert step["seconds"] == step["seconds_at_peak"]
    with pytest.raises(SystemExit):
        scaling.main(["--share", "0"])
    assert "--share is 0; it must be in (0, 1]" in capsys.readouterr().err


def flat(numbers: object, key: str = "") -> dict[str, object]:
    if isinstance(numbers, (dict, list)):
        items = numbers.items() if isinstance(numbers, dict) else enumerate(numbers)
        return {name: value for each, part in items for name, value in flat(part, f"{key}.{each}").items()}
    return {key: numbers}


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.{0 if seconds >= 0.1 else 1 if seconds >= 0.001 else 2}f}"


def both(cell: dict, suffix: str = "") -> str:
    return f"{cell[f'share_bare{suffix}']:.1%} / {cell[f'share{suffix}']:.1%}"


STEPS, THETA = RECORD["steps"], COUNTS.parameters["F"]  # numbers in an image's theta
SECONDS = STEPS["ANDNet"]["seconds"]
SIZES = {8 * machines: 8 * machines * GIVEN.images for machines in (1, 8, 64)}  # images by GPUs


def drawing(images: int, numbers: int) -> float:
    """The share of a step that drawing so many normal numbers for each image takes."""
    return images * numbers / GIVEN.normals / SECONDS


def agreeing(gpus: int) -> float:
    """Seconds: one number goes round the ring of processes twice."""
    return 2 * (gpus - 1) * GIVEN.gloo_hop


def tables() -> dict[str, list[list[str]]]:
    """The rows of the page's tables."""
    macs, parameters = COUNTS.macs, COUNTS.parameters
    return {
        "counts": [
            [name, f"{number:,}", f"{4 * number / 1e6:.1f}" if name[0] in "GD" else "", f"{macs[name] / 1e9:.1f}"]
            for name, number in parameters.items()
        ],
        "steps": [
            [name, f"{step['macs'] / 1e9:,.0f}", f"{step['macs'] / STEPS['plain']['macs']:.2f}",
             milliseconds(step["seconds"]), milliseconds(step["seconds_at_peak"]), f"{step['reduced_bytes'] / 1e6:.1f}"]
            for name, step in STEPS.items()
        ],
        "weak": [
            [str(row["gpus"]), str(row["images"]), "NVLink" if row["gpus"] <= 8 else row["network"],
             milliseconds(row["ANDNet"]["reduce_seconds"]), *map(both, (row[kind] for kind in STEPS)),
             both(row["ANDNet"], "_at_peak")]
            for row in RECORD["weak"]
        ],
        "strong": [
            [str(row["gpus"]), str(row["images"]), milliseconds(row["seconds"]), f"{row['speed_up']:.1f}",
             f"{row['busy']:.0%}", f"{row['speed_up_in_tiles']:.1f}"]
            for row in RECORD["strong"]
        ],
        "growth": [
            [str(images) for images in SIZES.values()],
            [f"{images / SECONDS:,.0f}" for images in SIZES.values()],
            [f"{4 * images * COUNTS.centres / 1e6:,.0f}" for images in SIZES.values()],
            [f"{drawing(images, COUNTS.centres):.1%}" for images in SIZES.values()],
            [f"{4 * images * THETA / 1e9:.2f}" for images in SIZES.values()],
            [f"{drawing(images, THETA):.0%}" for images in SIZES.values()],
            [milliseconds(agreeing(gpus)) for gpus in SIZES],
            [milliseconds(scaling.all_reduce(48, gpus, scaling.FAST, GIVEN)) for gpus in SIZES],
            [f"{GIVEN.failure_hours / gpus:,.0f}" for gpus in SIZES],
        ],
    }  # fmt: skip


@pytest.mark.parametrize("name", ["counts", "steps", "weak", "strong", "growth"])
def test_the_pages_tables_are_the_results(name):
    (table,) = re.findall(rf"<!-- bench/results/scaling.json: {name} -->\n(.*?)\n\n", PAGE.read_text(), re.DOTALL)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    assert [row[1:] if name == "growth" else row for row in rows] == tables()[name]


def test_the_pages_sentences_are_the_results():
    alone, eight = (row["seconds"] for row in RECORD["strong"][:2])
    on_8, on_64, on_64_slow, on_512, on_512_slow = (row["ANDNet"] for row in RECORD["weak"])
    small, middle, large = SIZES.values()
    assert (small, middle, large) == (48, 384, 3072)
    shares = [
        [
            row["ANDNet"]["share"]
            for row in scaling.calculate(RECORD["counts"], SimpleNamespace(**vars(GIVEN) | {"share": share}))["weak"]
        ]
        for share in (0.3, GIVEN.share, 0.4)
    ]
    assert all(0.8 < low / middle < 1 < high / middle < 1.2 for low, middle, high in zip(*shares, strict=True))
    assert scaling.busy(4, GIVEN) == scaling.busy(8, GIVEN)
    fast = {gpus: gpus * scaling.busy(48 // gpus, GIVEN) for gpus in (6, 8, 12, 16)}
    assert fast[6] == pytest.approx(fast[8], rel=0.01)
    assert fast[12] == pytest.approx(fast[16], rel=0.01)
    assert drawing(middle, THETA) == pytest.approx(0.1, abs=0.01)
    every, agreed = World(0, 512).stop_check_interval, 1000 * agreeing(512)
    patches, weights, refused = GIVEN.images / SECONDS, 4 * COUNTS.parameters["G"], COUNTS.macs["F"]
    saving = 7 * weights / GIVEN.disk  # the state, and the average as .safetensors and as .pth
    text = " ".join(PAGE.read_text().split())
    for sentence in (
        f"is {on_8['share_bare']:.1%} of an ANDNet step, {on_8['share']:.1%} where it hides",
        f"A million updates take {eight * 1e6 / 3600:.0f} hours instead of {alone * 1e6 / 3600:.0f}",
        f"costs {on_64_slow['share']:.0%} besides; 400 Gb/s for each GPU {on_64['share']:.1%}.",
        f"takes {drawing(large, THETA):.0%} of a step and {4 * large * THETA / 1e9:.1f} GB on every GPU",
        f"{agreed:.0f} ms: in each step it would be {agreed:.0f} of {1000 * SECONDS:.0f}, so it is made in every "
        f"{every}nd.",
        f"with 64 in every {World(0, 64).stop_check_interval}th, with 512 in every {every}nd, {agreed / every:.0f} ms "
        "a step",
        f"take {on_512['share']:.1%} on a fast network, {on_512_slow['share']:.0%} on a slow one",
        f"computes {STEPS['ANDNet']['macs'] / STEPS['plain']['macs']:.1f} times as much",
        f"is {64**2 // GIVEN.tile} tiles of {GIVEN.tile} pixels, for {GIVEN.multiprocessors} multiprocessors",
        f"fill whole waves ({scaling.busy(8, GIVEN):.0%}), 6 do not ({scaling.busy(6, GIVEN):.0%})",
        f"{large} images an update are as many images in {48_000_000 // large:,} updates",
        f"({COUNTS.centres:,} numbers a network)",
        f"{THETA:,} numbers: a tenth of a step at {middle} images",
        f"needs {patches:.0f} patches a second, {3 * 256**2 * patches / 1e6:.0f} MB/s",
        f"{GIVEN.image * patches / 1e9:.1f} GB/s of pixels a GPU",
        f"256 pieces of {3 * 256} bytes",
        f"all 3450 images of DIV2K and Flickr2K are {3450 * GIVEN.image / 1e9:.0f} GB",
        f"Theta is {4 * THETA / 1e6:.1f} MB an image",
        f"six rows live at once: {4 * GIVEN.copies * THETA / 1e6:.0f} MB",
        f"A refused try costs {refused / STEPS['ANDNet']['macs']:.1%} of a step",
        f"the most there can be, {10 * GIVEN.steps * refused / STEPS['ANDNet']['macs']:.0%}.",
        f"Adam's two moments: {5 * weights / 1e6:.0f} MB",
        f"in {saving:.2f} s, {saving / (GIVEN.save_every * SECONDS):.1%} of the time",
        f"512 GPUs run {GIVEN.failure_hours / 512:.0f} hours",
        f"at most {GIVEN.save_every * SECONDS:.0f} s of updates",
        f"| {GIVEN.peak / 1e12:.0f} TFLOP/s",
        f"| {GIVEN.share:.0%} of it",
        f"| NVLink, {GIVEN.nvlink / 1e9:.0f} GB/s a direction",
        f"| {8 * GIVEN.network / 1e9:.0f} Gb/s for each GPU; or {64 * GIVEN.slow_network / 1e9:.0f} Gb/s for all eight",
        f"| {GIVEN.link_share:.0%} of these",
        f"{GIVEN.nvlink_hop * 1e6:.0f} µs inside, {GIVEN.network_hop * 1e6:.0f} µs between machines, "
        f"{GIVEN.gloo_hop * 1e6:.0f} µs for gloo",
        f"| {GIVEN.normals / 1e9:.0f} billion a second",
        f"| {GIVEN.disk / 1e9:.0f} GB/s",
    ):
        assert sentence in text
