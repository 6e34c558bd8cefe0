"""The models that come with andfast: that they are what their records say, and better than interpolation."""

import hashlib
import json
import re
from pathlib import Path

import pytest
import torch
from setuptools import distutils  # Python has none of its own from 3.12 on
from setuptools.dist import Distribution

import andfast
from andfast.data.photographs import held_out_photographs
from andfast.data.tensors import to_array, to_tensor
from andfast.degradation.camera import camera_like, crop_to_multiple
from andfast.evaluation.models import Computing, load_methods
from andfast.inference.upscaler import upscale_tensor
from andfast.metrics import psnr_y
from andfast.models import ModelError, build_generator
from andfast.pretrained import (
    DEFAULT,
    FOLDER,
    PURPOSES,
    describe_pretrained,
    load_pretrained,
    model_file,
    pretrained_names,
)
from andfast.training.options import configuration_names, parse_config
from andfast.training.validation import upsample_by_pillow
from andfast.utils import torchvision_operators
from studies.card import comparison
from studies.evaluate import noise_and_grid

ROOT = Path(__file__).parents[1]
NAMES = pretrained_names()


def record(name):
    return json.loads((FOLDER / f"{name}.json").read_text())


def test_the_default_is_there():
    assert DEFAULT in NAMES
    model = andfast.load_pretrained()
    assert not model.training
    assert model.scale == 4
    named = load_pretrained("andnet_compact_x4").state_dict()
    assert all(torch.equal(named[key], value) for key, value in model.state_dict().items())


def test_an_unknown_name():
    with pytest.raises(ModelError, match=r"no pretrained model 'andnet'; there are: .*andnet_compact_x4"):
        load_pretrained("andnet")
    with pytest.raises(ModelError, match="no pretrained model"):
        load_pretrained("../pretrained/andnet_compact_x4")


def test_each_has_a_purpose():
    assert [*PURPOSES] == NAMES
    assert NAMES[0] == DEFAULT
    assert describe_pretrained() == [f"{name}: {PURPOSES[name]}" for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_flat_areas_come_out_without_a_grid(name):
    told = record(name)["noise_and_grid"]
    method = load_methods([name], Computing(torch.device("cpu"), tile=256))[0]
    found = noise_and_grid(method, method.upscaler.scale)
    assert found == pytest.approx(told["adversarial"], abs=0.02)
    # The first pretrained model left 14.1 of the noise, and a visible grid (0.95).
    assert found["noise"] < min(told["classical"]["noise"], 14)
    assert found["grid"] < 0.5


def test_readme_compares_the_models_as_their_records_do():
    (table,) = re.findall(r"<!-- readme: comparison -->\n(.*?)\n\n", (ROOT / "README.md").read_text(), re.DOTALL)
    others = [name for name in NAMES if name != DEFAULT and load_pretrained(name).scale == 4]
    assert table == comparison([record(DEFAULT), *map(record, others)])
    gains = {line["test"]: line["psnr_y_gain"] for line in record(DEFAULT)["evaluation"]["table"]}["real pairs, all"]
    text = (ROOT / "README.md").read_text().replace("\n", " ")
    over, twin = gains["bicubic"], gains["classical"]
    assert (
        f"{over['mean']:.2f} dB above bicubic interpolation and {twin['mean']:.2f} dB ({twin['low']:.2f} to "
        f"{twin['high']:.2f}) above the twin" in text
    )


def test_names_and_files():
    assert model_file(DEFAULT) == FOLDER / f"{DEFAULT}.safetensors"
    assert model_file("runs/a/model.pth") == Path("runs/a/model.pth")


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_that_of_the_weights(name):
    weights = FOLDER / f"{name}.safetensors"
    told = record(name)["model"]
    assert told["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert told["bytes"] == weights.stat().st_size
    model = load_pretrained(name)
    assert told["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert told["scale"] == model.scale


@pytest.mark.parametrize("name", NAMES)
def test_the_record_is_no_trial_s(name):
    """What was made in small, or from files that were not committed, is not what is shipped."""
    told = record(name)
    assert not told["quick"]
    assert "dirty" not in told["commit"]


@pytest.mark.parametrize("name", NAMES)
def test_the_configuration_makes_such_a_model(name):
    config = parse_config(["--config", str(FOLDER / f"{name}.yaml")])
    settings = config.generator
    sizes = {"compact": "convs", "rrdbnet": "blocks"}
    made = build_generator(
        settings.name, config.scale, **{"features": settings.features, sizes[settings.name]: settings.depth}
    )
    shapes = {key: value.shape for key, value in made.state_dict().items()}
    assert shapes == {key: value.shape for key, value in load_pretrained(name).state_dict().items()}
    # It is made from nothing but the images.
    assert settings.init is None


@pytest.mark.parametrize("name", NAMES)
def test_spandrel_loads_it(name):
    torchvision_operators.declare_missing()
    import spandrel

    loaded = spandrel.ModelLoader(device="cpu").load_from_file(FOLDER / f"{name}.safetensors")
    model = load_pretrained(name)
    assert loaded.scale == model.scale
    image = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(loaded(image), model(image).clamp(0, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("title", "hr"), held_out_photographs(), ids=[name for name, _ in held_out_photographs()])
def test_it_beats_bicubic_interpolation(name, title, hr):
    """On photographs that it was not trained on, taken by no camera that its making knew."""
    model = load_pretrained(name)
    hr = crop_to_multiple(hr[:256, :256], model.scale)
    lr = camera_like(hr, model.scale, seed=0)
    ours = to_array(upscale_tensor(model, to_tensor(lr)))
    scores = [
        psnr_y(to_tensor(image), to_tensor(hr), model.scale).item()
        for image in (ours, upsample_by_pillow(lr, model.scale))
    ]
    assert scores[0] > scores[1] + 0.05, title


def files_of(name):
    return {f"andfast/pretrained/{name}.{suffix}" for suffix in ("safetensors", "yaml", "json", "md", "png")}


def test_wheels_hold_them(monkeypatch):
    """setuptools' own list of what goes into a wheel by pyproject.toml, without building one."""
    monkeypatch.chdir(ROOT)
    distribution = Distribution({"script_name": "setup.py"})
    distribution.parse_config_files()
    distribution.include_package_data = False  # would look for an sdist's list, and write one
    build = distribution.get_command_obj("build_py")
    build.ensure_finalized()
    packed = {Path(path).as_posix() for path in build.get_output_mapping().values()}
    inside = {path for path in packed if path.startswith("andfast/pretrained/")}
    # Nothing but these: no leftovers of an interrupted making.
    assert inside == {"andfast/pretrained/__init__.py"}.union(*map(files_of, NAMES))
    assert {f"andfast/configs/{name}.yaml" for name in configuration_names()} <= packed


def test_sdists_hold_them(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    # Both are set by setup.py for torch; so they are forgotten after the test.
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    monkeypatch.setenv("TORCH_DONT_CHECK_COMPILER_ABI", "0")
    distutils.core.run_setup("setup.py", ["--quiet", "egg_info", "--egg-base", str(tmp_path)])
    packed = set((tmp_path / "andfast.egg-info" / "SOURCES.txt").read_text().splitlines())
    assert {"andfast/pretrained/__init__.py", "setup.py"}.union(*map(files_of, NAMES)) <= packed
    assert {f"andfast/configs/{name}.yaml" for name in configuration_names()} <= packed
