"""The benchmark of attacks, in small: what it measures, what it writes, and what it refuses."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import as_options
from PIL import Image

import andfast
from andfast.attack import PGD, YOPO, FreeAT, RandomDeviation, SubsetPGD
from andfast.data.patches import PatchBatches, scan_images
from andfast.utils.rng import step_generator
from bench import attack_quality
from bench.attack_benchmark import Measurement, default_variants, parse_variant
from bench.attack_quality import pareto

SMALL = {
    "batches": 2,
    "batch_size": 2,
    "patch_size": 32,
    "seed": 3,
    "precision": "float32",
    "degradation.channels": 8,
    "degradation.blocks": 1,
    "degradation.precision": "float32",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is not trained, and images."""
    folder = tmp_path_factory.mktemp("somewhere")
    torch.manual_seed(0)
    andfast.save_model(andfast.Compact(scale=4, features=8, convs=1), folder / "tiny.safetensors")
    random = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for index in range(3):
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((56, 48), Image.Resampling.BICUBIC).save(folder / "photos" / f"{index}.png")
    return folder


def arguments(folder: Path, output: Path, variants: list[str], **changed: object) -> list[str]:
    options = as_options(SMALL, **changed)
    return ["--model", str(folder / "tiny.safetensors"), f"--data.hr={folder / 'photos'}", f"--output={output}",
            *options, *(["--variants", *variants] if variants else [])]  # fmt: skip


def benchmarked(folder: Path, output: Path, variants: list[str], **changed: object) -> dict[str, dict]:
    assert attack_quality.main(arguments(folder, output, variants, **changed)) == 0
    record = json.loads((output / "attack_quality.json").read_text())
    return {variant["name"]: variant for variant in record["variants"]}


@pytest.fixture
def no_chart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the chart, which takes longer than small attacks."""
    monkeypatch.setattr(attack_quality, "chart", lambda measurements, subtitle: None)
    monkeypatch.setattr(attack_quality, "save_figure", lambda figure, path: None)


@pytest.mark.usefixtures("no_chart")
def test_limiting_cases_find_all_and_passes_are_what_the_formulas_say(folder, tmp_path):
    names = ["yopo-5-1", "subset-5-1", "subset-5-0.5", "free-6", "yopo-2-3", "pgd-2+last", "random", "pgd-5:bfloat16"]
    found = benchmarked(folder, tmp_path, names, num_networks=1, attack__psnr_range="null")
    assert list(found) == ["pgd-5", "pgd-20", *names]
    for exact in ("pgd-5", "yopo-5-1", "subset-5-1"):
        assert found[exact]["share_of_pgd-5"]["each"] == [1.0, 1.0]
    assert found["pgd-20"]["share_of_pgd-20"] == {"mean": 1.0, "spread": 0.0, "each": [1.0, 1.0]}
    assert found["pgd-5:bfloat16"]["share_of_pgd-5"]["mean"] == pytest.approx(1, abs=0.1)
    assert found["random"]["share_of_pgd-5"]["mean"] < 0.5
    passes = {name: tuple(variant["passes"].values()) for name, variant in found.items()}
    assert list(found["pgd-5"]["passes"]) == ["F forward", "F backward", "G forward", "G backward"]
    assert passes["pgd-5"] == (6, 5, 6, 5)
    assert passes["pgd-20"] == (21, 20, 21, 20)
    assert passes["pgd-2+last"] == (3, 2, 2, 2)
    assert passes["yopo-2-3"] == (7, 6, 3, 2)
    assert passes["free-6"] == (6, 5, 6, 5)
    assert passes["subset-5-0.5"] == (4, 2.5, 3, 2.5)  # half of PGD-5's, and F for the whole batch
    assert passes["random"] == (2, 0, 2, 0)
    for variant in found.values():
        assert len(variant["seconds"]["each"]) == 2
        assert variant["time_ratio_to_pgd-5"] == pytest.approx(
            variant["seconds"]["median"] / found["pgd-5"]["seconds"]["median"]
        )
        assert variant["peak_memory"] > 4 * 2 * 3 * 32 * 32
        each = [own / exact for own, exact in zip(variant["loss_increase"]["each"],
                                                  found["pgd-20"]["loss_increase"]["each"], strict=True)]  # fmt: skip
        assert variant["share_of_pgd-20"]["each"] == pytest.approx(each)
        assert variant["share_of_pgd-20"]["spread"] == pytest.approx(np.std(each, ddof=1))


@pytest.mark.usefixtures("no_chart")
def test_what_is_measured_is_the_attack_s_loss(folder, tmp_path):
    """The same batches, networks and budgets by hand."""
    found = benchmarked(folder, tmp_path, ["pgd-2@0.5"], num_networks="batch")
    model = andfast.load_model(folder / "tiny.safetensors").requires_grad_(False)
    patches = PatchBatches(scan_images([folder / "photos"], 32).sources, patch=32, batch=2, seed=3)
    network = andfast.DegradationNetwork(scale=4, num_networks=2, channels=8, blocks=1)
    for name, attack in (("pgd-5", PGD(steps=5)), ("pgd-2@0.5", PGD(steps=2, step_size=0.25))):
        for number in range(2):
            hr = patches[number][0].float() / 255
            random = step_generator(3, number, torch.device("cpu"))
            network.reset_identity((32, 32), random)
            result = attack(network, hr, andfast.l1_objective(model), random)
            increase = (result.loss_after - result.loss_before).mean().item()
            assert found[name]["loss_increase"]["each"][number] == pytest.approx(increase, rel=1e-3)
        assert found[name]["lr_psnr"] > 20


@pytest.mark.usefixtures("no_chart")
def test_equal_seeds_find_the_same_and_others_do_not(folder, tmp_path):
    first, again = (benchmarked(folder, tmp_path, ["random"], batches=1) for _ in range(2))
    other = benchmarked(folder, tmp_path, ["random"], batches=1, seed=4)
    for name in ("pgd-5", "random"):
        assert first[name]["loss_increase"] == again[name]["loss_increase"]
        assert first[name]["loss_increase"] != other[name]["loss_increase"]


def test_it_prints_a_table_and_writes_where_its_numbers_come_from(folder, tmp_path, capsys):
    assert attack_quality.main(arguments(folder, tmp_path / "new", ["free-2@1"])) == 0
    printed = capsys.readouterr().out
    heads = r"^\| attack \| loss increase / pgd-5 \| / pgd-20 \| ms a batch \| time \| peak MiB \| F forward \|"
    assert re.search(heads, printed, re.M)
    assert re.search(r"^\| (\*\*)?pgd-5(\*\*)? \| 100.0% ± 0.0% \|.*\| 1.00x \|", printed, re.M)
    assert re.search(r"^\| (\*\*)?free-2@1", printed, re.M)
    assert "Compact x4" in printed
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"attack_quality.json", "attack_quality.png"}
    text = (tmp_path / "new" / "attack_quality.json").read_text()
    assert str(tmp_path) not in text
    assert str(folder.parent) not in text
    record = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert record["command"].startswith("python -m bench.attack_quality --model tiny.safetensors --data.hr=photos ")
    assert record["machine"]["versions"]["torch"] == torch.__version__
    assert re.match(r"\d{4}-\d\d-\d\dT", record["date"])
    settings = record["settings"]
    assert (settings["seed"], settings["batch_size"], settings["data"]) == (3, 2, ["photos"])
    assert settings["degradation"]["channels"] == 8
    assert settings["attack"]["scale_factors"]["conv_dc"] == "inf"
    (free,) = [variant for variant in record["variants"] if variant["name"] == "free-2@1"]
    assert free["settings"] == {"step_size": 0.1, "step_ratio": 1.0, "replays": 2}
    with Image.open(tmp_path / "new" / "attack_quality.png") as image:
        assert image.size == (1400, 1000)


def test_the_front_is_of_those_that_none_beats():
    exact = parse_variant("pgd-5", PGD())
    others = [parse_variant(name, PGD()) for name in ("pgd-1", "pgd-2", "pgd-3", "pgd-10")]
    found = [(exact, 1.0, 5.0), *zip(others, (0.4, 0.3, 1.0, 1.2), (1.0, 2.0, 3.0, 10.0), strict=True)]
    measurements = [
        Measurement(variant, increase=[increase], seconds=[seconds]) for variant, increase, seconds in found
    ]
    # 2 finds less than 1 in more time, 5 as much as 3 in more.
    assert [measurement.variant.name for measurement in pareto(measurements)] == ["pgd-1", "pgd-3", "pgd-10"]


@pytest.mark.parametrize(
    ("name", "attack", "dtype"),
    [
        ("pgd-3", PGD(steps=3, epsilon=0.4), None),
        ("pgd-3@0.5+last:float16", PGD(steps=3, epsilon=0.4, step_ratio=0.5, return_iterate="last"), torch.float16),
        ("yopo-3-2@1", YOPO(steps=3, inner_steps=2, epsilon=0.4, step_ratio=1.0), None),
        ("free-4", FreeAT(replays=4, epsilon=0.4), None),
        ("subset-5-0.25:float32", SubsetPGD(steps=5, share=0.25, epsilon=0.4), torch.float32),
        ("random", RandomDeviation(epsilon=0.4), None),
    ],
)
def test_names_of_variants(name, attack, dtype):
    variant = parse_variant(name, PGD(epsilon=0.4))
    assert variant.attack == attack
    assert type(variant.attack) is type(attack)
    assert (variant.name, variant.dtype, variant.method) == (name, dtype, name[: len(variant.method)])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fgsm", "variant 'fgsm' is invalid; wanted pgd-STEPS"),
        ("pgd", "variant 'pgd' is invalid"),
        ("pgd-3-2", "variant 'pgd-3-2' is invalid"),
        ("pgd-0", "variant 'pgd-0': steps is 0"),
        ("pgd-1.5", "variant 'pgd-1.5': "),
        ("pgd-3@0", "variant 'pgd-3@0': step_ratio is 0"),
        ("pgd-3@1.2.3", "variant 'pgd-3@1.2.3': "),
        ("subset-5-1.5", "variant 'subset-5-1.5': share is 1.5"),
        ("free-4+last", "variant 'free-4+last' is invalid"),
        ("random@1", "variant 'random@1' is invalid"),
        ("pgd-3:float8", "variant 'pgd-3:float8' is invalid"),
        ("pgd-3:float16@1", "variant 'pgd-3:float16@1' is invalid"),
    ],
)
def test_invalid_names_are_refused(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        parse_variant(name, PGD())


@pytest.mark.parametrize("num_networks", [1, 2])
def test_the_default_choice_is_valid(num_networks):
    names = default_variants(num_networks, ["bfloat16"])
    assert len(set(names)) == len(names)
    for name in names:
        assert parse_variant(name, PGD()).name == name
    assert ("subset-5-0.25" in names) == (num_networks == 1)
    assert {"pgd-5", "pgd-20", "pgd-5:bfloat16", "random"} <= set(names)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"model": "missing.pth"}, "missing.pth"),
        ({"data.hr": "nowhere"}, "nowhere"),
        ({"variants": "pgd-3,5"}, "variant 'pgd-3,5' is invalid; wanted pgd-STEPS"),
        ({"variants": "subset-5-0.5"}, "variant subset-5-0.5 needs --num_networks 1, not 2"),
        ({"num_networks": 3}, "--num_networks is 3; it must divide --batch_size, 2, or be 'batch'"),
        ({"patch_size": 30}, "--patch_size is 30; it must be a multiple of the model's scale, 4"),
        ({"patch_size": 4}, "at least 8"),
        ({"patch_size": 64}, "64 x 64"),
        ({"attack.step_ratio": 0.5, "attack.epsilon": "inf"}, "step_ratio is 0.5 of an infinite epsilon"),
        ({"output": __file__}, "not a folder"),
    ],
)
def test_what_cannot_be_measured_is_said_before_it_begins(folder, tmp_path, capsys, changed, message):
    options = [*arguments(folder, tmp_path / "out", [])]
    options += [item for key, value in changed.items() for item in (f"--{key}", str(value))]
    assert attack_quality.main(options) == 2
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: ")
    assert message in captured.err
    assert captured.out == ""
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--batch=3", "--precision=float8", "--batches=0", "--attack.steps=3"])
def test_wrong_options_are_named(folder, tmp_path, capsys, option):
    with pytest.raises(SystemExit) as error:
        attack_quality.main([*arguments(folder, tmp_path, []), option])
    assert error.value.code == 2
    assert option.lstrip("-").split("=")[0] in capsys.readouterr().err


def test_a_budget_that_leaves_nothing_to_find_is_an_error(folder, tmp_path, capsys):
    options = arguments(folder, tmp_path / "out", ["random"], attack__psnr_range="[250, 250]")
    assert attack_quality.main(options) == 3
    assert "pgd-5 found no larger loss on batch 0" in capsys.readouterr().err
    assert not list((tmp_path / "out").iterdir())


def test_help_says_what_variants_are(capsys):
    with pytest.raises(SystemExit) as error:
        attack_quality.main(["--help"])
    assert error.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "pgd-STEPS, yopo-STEPS-INNER, free-REPLAYS, subset-STEPS-SHARE or random" in text
