"""Short training runs with every configuration in configs/."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import as_options
from runs import records
from study_images import write_pairs, write_photographs
from vgg_file import write_vgg

from andfast import train
from andfast.models import build_generator, save_model
from andfast.training.config import Config
from andfast.training.options import parse_config

CONFIGS = Path(__file__).parents[2] / "configs"
# What is no configuration of its own is given after one.
OVERLAYS = sorted([*CONFIGS.glob("attack_*.yaml"), *CONFIGS.glob("table2/*.yaml")])
WHOLE = sorted(set(CONFIGS.rglob("*.yaml")) - set(OVERLAYS))
# The column of ANDGAN in Table 2.
GAN_ROWS = ("adversarial_noise", "classical", "complete", "synthetic")
CASES = [[path] for path in WHOLE]
CASES += [[CONFIGS / "andnet_x4.yaml", path] for path in OVERLAYS]
CASES += [[CONFIGS / "andgan_x4.yaml", CONFIGS / "table2" / f"{row}.yaml"] for row in GAN_ROWS]

SMALL = {
    "train.batch_size": 8,
    "train.patch_size": 16,
    "train.validate_every": 0,
    "train.save_every": 0,
    "train.precision": "float32",
    "degradation.channels": 4,
    "degradation.blocks": 1,
    "degradation.precision": "float32",
    "discriminator.features": 2,
    "data.held_out": 1,
    "data.workers": 0,
    "data.cache_mib": 64,
}


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Files that users of the configurations provide."""
    folder = tmp_path_factory.mktemp("given")
    write_vgg(folder / "vgg.pth")
    return {
        "hr": write_photographs(folder / "hr", 4),
        "pairs": write_pairs(folder / "pairs", ["a", "b"]),
        "vgg": folder / "vgg.pth",
    }


def sizes(settings: Config, given: Mapping[str, Path], tmp_path: Path) -> dict[str, Any]:
    """Options that make a run small and name the files it needs; all others stay as configured."""
    more: dict[str, Any] = {"data.hr": given["hr"], "run_dir": tmp_path / "run"}
    # Within 12 iterations the adversary is there, and where there is a ramp its end as well.
    more |= {"train.warmup": min(settings.train.warmup, 5), "train.ramp": min(settings.train.ramp, 5)}
    if settings.generator.init is None:
        more |= {"generator.features": 4, "generator.depth": 1}
    else:
        name, scale = settings.generator.architecture, settings.scale
        depth = {"rrdbnet": "blocks", "compact": "convs"}[name]
        save_model(build_generator(name, scale, features=4, **{depth: 1}), tmp_path / "andnet.safetensors")
        more["generator.init"] = tmp_path / "andnet.safetensors"
    if settings.loss.perceptual:
        more |= {"loss.vgg": given["vgg"], "loss.perceptual_layers": {"conv1_2": 0.1}}
    if settings.attack.method == "pairs":
        more["attack.mix.pairs"] = given["pairs"]
    return more


@pytest.mark.parametrize("files", CASES, ids=lambda files: "+".join(path.stem for path in files))
def test_it_trains(files: list[Path], given: Mapping[str, Path], tmp_path: Path) -> None:
    configs = [option for path in files for option in ("--config", str(path))]
    # A folder for the method `pairs` is the user's to give.
    settings = parse_config([*configs, f"--attack.mix.pairs={given['pairs']}"])
    iterations = 12
    small = SMALL | sizes(settings, given, tmp_path) | {"train.iterations": iterations}
    assert train.main([*configs, *as_options(small)]) == 0
    steps = [line for line in records(tmp_path / "run") if "loss" in line]
    assert [line["step"] for line in steps] == list(range(1, iterations + 1))
    assert not any(line["skipped"] for line in steps)
    gan, perceptual = settings.loss.gan > 0, settings.loss.perceptual > 0
    assert all(("loss_d" in line, "loss_perceptual" in line) == (gan, perceptual) for line in steps)
    assert {"model.safetensors", "state.pt"} <= {path.name for path in (tmp_path / "run").iterdir()}
    assert (tmp_path / "run" / "discriminator.pth").exists() == gan


@pytest.mark.parametrize("scale", [2, 4])
def test_the_paper_s_numbers(scale: int) -> None:
    """Sec 4.3."""
    andnet, andgan = (
        parse_config(["--config", str(CONFIGS / f"{name}_x{scale}.yaml")]) for name in ("andnet", "andgan")
    )
    for config, iterations in ((andnet, 10**6), (andgan, 5 * 10**5)):
        train = config.train
        assert (config.scale, train.iterations, train.batch_size, train.patch_size) == (scale, iterations, 48, 256)
        assert (train.learning_rate, train.schedule, config.attack.steps) == (1e-4, "constant", 5)
        assert (config.generator.name, config.degradation.num_networks) == ("rrdbnet", "batch")
    assert (andnet.loss.perceptual, andnet.loss.gan) == (0, 0)
    assert (andgan.loss.perceptual, andgan.loss.gan) == (1, 0.1)
    assert andgan.generator.init == f"runs/andnet_x{scale}/model.safetensors"
    # It starts where ANDNet ended, and differs in nothing but what makes it a GAN.
    assert (andgan.train.warmup, andgan.train.ramp) == (0, 0)
    both = [yaml.safe_load((CONFIGS / f"{name}_x{scale}.yaml").read_text()) for name in ("andnet", "andgan")]
    for key in ("iterations", "warmup", "ramp"):
        both[1]["train"][key] = both[0]["train"][key]
    del both[1]["generator"]["init"], both[1]["loss"], both[1]["discriminator"]
    assert both[0] == both[1]
