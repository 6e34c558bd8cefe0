"""The JSON schema of the settings: what it says is what the parser does."""

import json
import math
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from andfast.attack import Lens
from andfast.training.checkpoints import flat
from andfast.training.config import Config
from andfast.training.options import CONFIGS, parse_config
from andfast.training.schema import settings_schema
from andfast.utils.yaml_files import load_yaml

VALIDATOR = jsonschema.Draft7Validator(settings_schema())


def errors(settings: Any) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(settings)]


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        parse_config(["--print_schema"])
    assert not end.value.code
    text = capsys.readouterr().out
    assert "Infinity" not in text  # which Python reads, but no editor
    printed = json.loads(text)
    assert printed == settings_schema()
    jsonschema.Draft7Validator.check_schema(printed)


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.yaml")), ids=lambda path: path.stem)
def test_our_configurations_are_valid(path: Path) -> None:
    assert errors(load_yaml(path.read_text())) == []


def test_a_run_s_own_configuration_is_valid() -> None:
    config = parse_config(["--attack.lens.blur=[1, 2]", "--attack.epsilon=inf", "--data.hr", "a", "--data.weights=[2]"])
    assert errors(config.to_dict()) == []


def test_every_setting_is_described_with_its_default() -> None:
    found: dict[str, Any] = {}

    def walk(schema: dict[str, Any], prefix: str) -> None:
        for name, each in schema["properties"].items():
            assert len(each["description"]) > 3, prefix + name
            if "properties" in each:
                walk(each, f"{prefix}{name}.")
            else:
                found[prefix + name] = each.get("default", math.inf)

    walk(settings_schema(), "")
    expected = flat(Config().to_dict())
    # Mappings, empty by default.
    expected |= {"generator.options": {}, "attack.options": {}, "loss.custom_options": {}}
    assert found == expected


@pytest.mark.parametrize(
    "text",
    [
        "sed: 1",
        "train: {iterations: -3}",
        "train: {iterations: many}",
        "train: {iterations: 2.5}",
        "train: {schedule: linear}",
        "attack: {method: fgsm}",
        "attack: {psnr_range: [20]}",
        "attack: {psnr_range: 28}",
        "attack: {lens: {blurr: [1, 2]}}",
        "data: {hr: photographs}",
        "train: 5",
        "seed: null",
        "loss: {perceptual_layers: {conv1_2: -1}}",
    ],
)
def test_what_the_parser_refuses_is_invalid(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(SystemExit):
        parse_config(["--config", str(tmp_path / "config.yaml")])
    assert errors(yaml.safe_load(text))


@pytest.mark.parametrize(
    "text",
    [
        "train: {iterations: 3}\ntrain.warmup: 2",
        "attack: {lens: {blur: [1, 2], sharpen: [0, 1], sharpen_radius: 1}}",
        "attack: {lens: null, psnr_range: [20, 30]}",
        "compile: true",
        "degradation: {num_networks: batch}",
        "attack: {method: 'andfast:PGD'}",
    ],
)
def test_what_the_parser_takes_is_valid(text: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(text)
    parse_config(["--config", str(tmp_path / "config.yaml")])
    assert errors(yaml.safe_load(text)) == []


def test_the_lens_is_a_group_of_its_own() -> None:
    schema = settings_schema()["properties"]["attack"]["properties"]["lens"]
    groups = [part for part in schema["anyOf"] if part["type"] == "object"]
    assert set(groups[0]["properties"]) == set(Lens.__dataclass_fields__)
