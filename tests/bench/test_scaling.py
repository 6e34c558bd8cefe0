"""The calculation of how training scales, against references of its own, and the page that it makes."""

import json
import math
import re
from dataclasses import replace
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from andfast import RRDBNet
from andfast.models import VGGFeatures, build_discriminator
from andfast.models.spectral_norm import SpectralNormConv2d
from andfast.ops import use_backend
from andfast.training.config import AttackConfig, Config, DegradationConfig, GeneratorConfig, TrainConfig
from andfast.training.distributed import World
from andfast.training.trainer import Trainer
from bench import allreduce, scaling
from bench.counts import Counts, count

ROOT = Path(__file__).parents[2]
RESULT, PAGE = ROOT / "bench" / "results" / "scaling.json", ROOT / "docs" / "scaling.md"


@pytest.fixture(scope="module")
def counts() -> Counts:
    return count()


@pytest.fixture(scope="module")
def record() -> dict:
    return json.loads(RESULT.read_text())


def test_the_generator_is_counted_by_its_weights(counts):
    with torch.device("meta"):
        weights = dict(RRDBNet().named_parameters())
    sides = {"conv_up1": 128, "conv_up2": 256, "conv_hr": 256, "conv_last": 256}
    macs = sum(
        weight.numel() * sides.get(name.split(".")[0], 64) ** 2 for name, weight in weights.items() if weight.ndim == 4
    )
    assert counts.macs["G"] == macs
    assert f"RRDBNet with 23 blocks {macs / 1e9:.1f}" in (ROOT / "docs" / "performance.md").read_text()
    assert counts.parameters["G"] == sum(weight.numel() for weight in weights.values())


def test_the_features_are_counted_by_their_weights(counts):
    with torch.device("meta"):
        features = VGGFeatures().features
    blocks = [64, 128, 256, 512, 512]
    layers = [
        (layer.weight.numel(), block)
        for layer, block in zip(features.values(), [0, 0, 1, 1] + [2] * 4 + [3] * 4 + [4] * 4, strict=True)
    ]
    assert [layer.out_channels for layer in features.values()] == [blocks[block] for _, block in layers]
    assert counts.macs["VGG19"] == sum(weights * (256 >> block) ** 2 for weights, block in layers)


@pytest.mark.parametrize("name", ["vgg", "unet"])
def test_discriminators_are_counted_by_what_their_layers_give(counts, name):
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
    assert sum(macs) <= counts.macs[f"D {name}"] <= sum(macs) + 2 * power  # and the spectral norms
    assert counts.parameters[f"D {name}"] == sum(weight.numel() for weight in discriminator.parameters())


def test_the_degradation_network_is_counted_by_its_layers(counts):
    high, low, width = 256**2, 64**2, 64
    convs = 9 * (3 * width * (high + low) + width**2 * (4 * high + 5 * low))
    # Beside the nine taps of the deviation the identity's centre is a tap of its own; and there are the pooling over
    # 6 x 6 pixels and each kernel's way from moments to taps.
    assert counts.macs["F"] == convs * 10 // 9 + 36 * width * low + 81 * (2 * 3 * width + 9 * width**2)
    for page, sentence in (
        ("performance", "a pass of F is {:.1f} GMAC"),
        ("scaling", "as one convolution it would be {:.1f}."),
    ):
        assert sentence.format(convs / 1e9) in " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
    taps = 9 * (2 * 3 * width + 9 * width**2)
    assert counts.parameters["F"] == taps + 5 * (high + low) + 10
    assert counts.centres == 3 * width + 9 * width**2


class Operations(TorchDispatchMode):
    """Counts floating-point operations, as FlopCounterMode does, which does not stand `torch.autograd.grad`."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=result)
        return result


def test_a_step_computes_what_is_assumed():
    """Counted while a trainer takes it, in small."""
    sizes = {"features": 32, "depth": 1}
    config = Config(
        scale=4,
        device="cpu",
        compile="off",
        generator=GeneratorConfig("rrdbnet", **sizes),
        degradation=DegradationConfig("batch", channels=32, blocks=2),
        attack=AttackConfig(steps=3, lr_psnr=None),
        train=TrainConfig(batch_size=2, patch_size=32, warmup=0, ramp=0),
    )
    patches = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with use_backend("reference"):
        trainer = Trainer(config)
        bank = trainer.degradation(2)
        bank.reset_identity((32, 32))
        macs = {}
        for name, network, side in (("G", trainer.generator, 8), ("F", bank, 32)):
            with Operations() as counter, torch.no_grad():
                network(torch.zeros(2, 3, side, side))
            macs[name] = counter.flops // 4
        for name, method in ((scaling.ANDNET, "pgd"), (scaling.PLAIN, "none")):
            config.attack.method = method
            trainer = Trainer(config)
            with Operations() as counter:
                trainer.train_step(patches)
            small = Counts({"G": 0, "D vgg": 0}, macs | {"VGG19": 0, "D vgg": 0}, 0)
            expected = scaling.make_steps(small, 3)[name].macs
            # First layers need no gradient of their input, nor the identity's centres any.
            assert 0.97 * expected < counter.flops / 4 <= expected, name


@pytest.mark.parametrize("members", [1, 2, 5, 8])
def test_a_ring_takes_as_long_as_its_messages(members):
    """Played: every member sends a piece to the next, all at once; first sums go round, then results."""
    rate, hop = 1e9, 1e-5
    pieces = [np.arange(members, dtype=float) + 10 * member for member in range(members)]
    size, seconds = 8.0 * members, 0.0
    for turn in range(2 * (members - 1)):
        sums = turn < members - 1
        sent = [(member - turn) % members for member in range(members)]
        messages = [pieces[member][sent[member]] for member in range(members)]
        for member, message in enumerate(messages):
            after = (member + 1) % members
            pieces[after][sent[member]] = message + (pieces[after][sent[member]] if sums else 0)
        seconds += 8 / rate + hop
    whole = members * np.arange(members) + 10 * sum(range(members))
    assert all(np.array_equal(found, whole) for found in pieces)
    assert allreduce.ring(size, members, rate, hop) == pytest.approx(seconds)


NETWORK = allreduce.Network(machine=4, inside=100e9, between=10e9, inside_hop=1e-6, between_hop=1e-5)


def test_machines_exchange_their_parts():
    inside = allreduce.ring(1e8, 4, 100e9, 1e-6)
    assert allreduce.all_reduce(1e8, 1, NETWORK) == 0
    assert allreduce.all_reduce(1e8, 4, NETWORK) == inside
    # A quarter of the bytes goes between two machines: half of it there and half of it back.
    assert allreduce.all_reduce(1e8, 8, NETWORK) == pytest.approx(inside + 25e6 / 10e9 + 2e-5)
    # Many machines and few bytes: up and down ten levels, instead of 1023 neighbours twice.
    assert allreduce.all_reduce(4, 4096, NETWORK) == pytest.approx(6e-6 + 20e-5, rel=1e-3)
    with pytest.raises(ValueError, match="6 GPUs do not fill machines of 4"):
        allreduce.all_reduce(1, 6, NETWORK)


def test_a_backward_pass_hides_all_but_the_last_bucket():
    size, mib = 60.5 * 2**20, 2**20
    pieces = list(allreduce.buckets(size))
    assert pieces == [1 * mib, 25 * mib, 25 * mib, 9.5 * mib]
    times = [allreduce.all_reduce(piece, 16, NETWORK) for piece in pieces]
    waits = partial(allreduce.exposed, size, 16, NETWORK)
    assert allreduce.reduced(size, 16, NETWORK) == pytest.approx(sum(times))
    assert waits(0.0) == pytest.approx(sum(times))
    assert waits(100.0) == pytest.approx(times[-1])
    # In between, whichever bucket the others then queue behind.
    backward = 1.2 * sum(times)
    known = [backward * part / size for part in accumulate(pieces)]
    assert waits(backward) == pytest.approx(max(known[k] + sum(times[k:]) for k in range(4)) - backward)
    assert times[-1] < waits(backward) < sum(times)


def test_multiprocessors_are_busy_by_whole_waves():
    given = scaling.Assumptions(multiprocessors=30, tile=128)  # an image of 64 x 64 has 32 tiles
    assert scaling.busy(1, given) == 32 / 60
    assert scaling.busy(15, given) == 1


def test_assumptions_are_the_configurations_and_the_papers():
    given = scaling.Assumptions()
    config = yaml.safe_load((ROOT / "configs" / "andnet_x4.yaml").read_text())
    assert (given.batch, given.save_every) == (config["train"]["batch_size"], config["train"]["save_every"])
    assert (given.steps, config["scale"], config["train"]["patch_size"]) == (config["attack"]["steps"], 4, 256)
    assert given.images * given.machine == given.batch


def test_the_result_is_what_the_code_calculates(record, counts):
    assert not record["commit"].endswith("-dirty")
    assert Counts(**record["counts"]) == counts
    given = scaling.Assumptions(**record["assumptions"])
    calculated = json.loads(json.dumps(scaling.calculate(counts, given)))
    for part, numbers in calculated.items():
        assert flat(record[part]) == pytest.approx(flat(numbers)), part


def flat(numbers: object, key: str = "") -> dict[str, object]:
    if isinstance(numbers, (dict, list)):
        items = numbers.items() if isinstance(numbers, dict) else enumerate(numbers)
        return {name: value for each, part in items for name, value in flat(part, f"{key}.{each}").items()}
    return {key: numbers}


def test_the_command_prints_the_tables_and_writes_them(capsys, tmp_path, record):
    path = tmp_path / "scaling.json"
    scaling.main(["--share", "1", "--output", str(path)])
    written = json.loads(path.read_text())
    assert written["command"] == "python -m bench.scaling --share 1 --output FILE"
    assert str(tmp_path) not in path.read_text()
    printed = capsys.readouterr().out
    assert all(table(written) in printed for table in scaling.TABLES.values())
    step = written["steps"][scaling.ANDNET]
    assert (
        step["seconds"] == step["seconds_at_peak"] == pytest.approx(record["steps"][scaling.ANDNET]["seconds_at_peak"])
    )
    with pytest.raises(SystemExit):
        scaling.main(["--share", "0"])
    assert "0 is no share in (0, 1]" in capsys.readouterr().err


def test_the_pages_tables_are_the_results(record):
    text = PAGE.read_text()
    assert re.findall(r"<!-- bench/results/scaling.json: (\w+) -->", text) == list(scaling.TABLES)
    for name, table in scaling.TABLES.items():
        assert f"<!-- bench/results/scaling.json: {name} -->\n{table(record)}\n\n" in text, name


def test_the_pages_sentences_are_the_results(record, counts):
    given, steps, one = scaling.Assumptions(**record["assumptions"]), record["steps"], record["one_gpu"]
    alone, eight = record["strong"][0]["seconds"], record["strong"][1]["seconds"]
    on_8, on_64, on_64_slow, on_512, on_512_slow = (row[scaling.ANDNET] for row in record["weak"])
    small, middle, large = record["growth"]
    assert (small["images"], middle["images"], large["images"]) == (48, 384, 3072)
    step_ms = 1000 * steps[scaling.ANDNET]["seconds"]
    shares = [
        [row[scaling.ANDNET]["share"] for row in scaling.calculate(counts, replace(given, share=share))["weak"]]
        for share in (0.3, given.share, 0.4)
    ]
    assert all(0.8 < low / middle < 1 < high / middle < 1.2 for low, middle, high in zip(*shares, strict=True))
    assert scaling.busy(4, given) == scaling.busy(8, given)
    fast = {gpus: gpus * scaling.busy(48 // gpus, given) for gpus in (6, 8, 12, 16)}
    assert fast[6] == pytest.approx(fast[8], rel=0.01)
    assert fast[12] == pytest.approx(fast[16], rel=0.01)
    of_512 = World(0, 512).stop_check_interval
    text = " ".join(PAGE.read_text().split())
    for sentence in (
        f"is {on_8['share_bare']:.1%} of an ANDNet step, {on_8['share']:.1%} where it hides",
        f"A million updates take {eight * 1e6 / 3600:.0f} hours instead of {alone * 1e6 / 3600:.0f}",
        f"costs {on_64_slow['share']:.0%} besides; 400 Gb/s for each GPU {on_64['share']:.1%}.",
        f"takes {large['starts_share']:.0%} of a step and {large['starts_bytes'] / 1e9:.1f} GB on every GPU",
        f"{1000 * large['gloo_seconds']:.0f} ms: in each step it would be "
        f"{1000 * large['gloo_seconds']:.0f} of {step_ms:.0f}, so it is made in every {of_512}nd.",
        f"with 64 in every {World(0, 64).stop_check_interval}th, with 512 in every {of_512}nd, "
        f"{1000 * large['gloo_seconds'] / of_512:.0f} ms a step",
        f"take {on_512['share']:.1%} on a fast network, {on_512_slow['share']:.0%} on a slow one",
        f"computes {steps[scaling.ANDNET]['macs'] / steps[scaling.PLAIN]['macs']:.1f} times as much",
        f"is {64**2 // given.tile} tiles of {given.tile} pixels, for {given.multiprocessors} multiprocessors",
        f"fill whole waves ({scaling.busy(8, given):.0%}), 6 do not ({scaling.busy(6, given):.0%})",
        f"{large['images']} images an update are as many images in {48_000_000 // large['images']:,} updates",
        f"({counts.centres:,} numbers a network)",
        f"{counts.parameters['F']:,} numbers: a tenth of a step at {middle['images']} images",
        f"eats {one['patches_per_second']:.0f} patches a second, {one['patch_bytes_per_second'] / 1e6:.0f} MB/s",
        f"{one['decoded_bytes_per_second'] / 1e9:.1f} GB/s of pixels a GPU",
        f"256 pieces of {one['patch_bytes'] // 256} bytes",
        f"all 3450 images of DIV2K and Flickr2K are {3450 * given.image / 1e9:.0f} GB",
        f"Theta is {one['theta_bytes'] / 1e6:.1f} MB an image",
        f"six rows live at once: {one['theta_copies_bytes'] / 1e6:.0f} MB",
        f"A refused try costs {one['try_share']:.1%} of a step",
        f"the most there can be, {one['tries_share']:.0%}.",
        f"Adam's two moments: {one['state_bytes'] / 1e6:.0f} MB",
        f"in {one['save_seconds']:.2f} s, {one['save_share']:.1%} of the time",
        f"512 GPUs run {large['failure_hours']:.0f} hours",
        f"at most {one['lost_seconds']:.0f} s of updates",
        f"| {given.peak / 1e12:.0f} TFLOP/s",
        f"| {given.share:.0%} of it",
        f"| NVLink, {given.nvlink / 1e9:.0f} GB/s a direction",
        f"| {8 * given.network / 1e9:.0f} Gb/s for each GPU; or {64 * given.slow_network / 1e9:.0f} Gb/s for all eight",
        f"| {given.link_share:.0%} of these",
        f"{given.nvlink_hop * 1e6:.0f} µs inside, {given.network_hop * 1e6:.0f} µs between machines, "
        f"{given.gloo_hop * 1e6:.0f} µs for gloo",
        f"| {given.normals / 1e9:.0f} billion a second",
        f"| {given.disk / 1e9:.0f} GB/s",
    ):
        assert sentence in text
    assert middle["starts_share"] == pytest.approx(0.1, abs=0.01)
