"""Making a model that comes with andfast, in small: what it writes, what it refuses, and that nothing is half done."""

import hashlib
import json
import statistics

import pytest
import scipy.stats
from PIL import Image
from study_images import photograph, write_pairs

from andfast import train
from andfast.data.images import DataError, read_image
from andfast.data.tensors import to_tensor
from andfast.metrics import psnr_y
from andfast.models import load_model
from andfast.pretrained import FOLDER, pretrained_names
from andfast.training.options import parse_config
from andfast.training.validation import upsample_by_pillow
from andfast.utils.charts import new_figure
from bench.record import summary
from studies import ship
from studies.card import model_card
from studies.sources import count_sources

NAME = "andnet_compact_x4"
SUFFIXES = ("safetensors", "yaml", "json", "md", "png")


def arguments(folder, output="out"):
    folders = {"--data.hr": folder / "hr", "--pairs": folder / "pairs", "--work": folder / "work"}
    options = [str(part) for option in folders.items() for part in option]
    return [*options, "--output", str(folder / output), "--quick"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with images, and what the command made of them in `out`."""
    folder = tmp_path_factory.mktemp("ship")
    (folder / "hr").mkdir()
    for seed in range(8):
        name = f"{'cid22_' if seed < 6 else 'gb82_'}{seed}.png"
        Image.fromarray(photograph(seed)).save(folder / "hr" / name)
    write_pairs(folder / "pairs", ["canon_1", "canon_2", "canon_3", "canon_4", "nikon_1", "nikon_2"])
    assert ship.main(arguments(folder)) == 0
    return folder


@pytest.fixture
def record(made):
    return json.loads((made / "out" / f"{NAME}.json").read_text())


def test_it_writes_files_that_belong_together(made, record):
    out = made / "out"
    assert sorted(path.name for path in out.iterdir()) == sorted(f"{NAME}.{suffix}" for suffix in SUFFIXES)
    weights = out / f"{NAME}.safetensors"
    assert record["model"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert record["model"]["parameters"] == sum(p.numel() for p in load_model(weights).parameters())
    assert (out / f"{NAME}.md").read_text() == model_card(record)
    assert record["quick"]
    assert "the model is useless" in model_card(record)
    config = parse_config(["--config", str(out / f"{NAME}.yaml")])
    assert config.generator.features == ship.QUICK["generator.features"]
    ran = parse_config(["--config", str(made / "work" / f"{NAME}_quick" / "adversarial" / "config.yaml")])
    assert config.attack == ran.attack
    for path in out.iterdir():  # nothing tells where it was made
        assert str(made).encode() not in path.read_bytes()
    assert record["command"] == "python -m studies.ship --data.hr hr --pairs pairs --output out --quick"


def test_the_twin_differs_in_the_adversary_alone(record):
    ours, twin = record["runs"]["adversarial"], record["runs"]["classical"]
    assert ours["updates"] == twin["updates"] == ship.QUICK["train.iterations"]
    attack = twin["config"].pop("attack")
    assert (attack["method"], attack["mix"]["share"]) == ("none", 0)
    assert ours["config"].pop("attack")["method"] == "pgd"
    for run in (ours, twin):
        del run["config"]["run_dir"]
    assert ours["config"] == twin["config"]
    assert ours["course"][-1]["gain"] > 1
    assert twin["course"][-1]["gain"] is None
    assert ours["course"][-1]["step"] == ours["updates"]


def test_the_table_is_of_the_reporting_part(made, record):
    found = record["evaluation"]
    assert found["images"]["reporting"] == ["canon_2", "canon_4", "nikon_2"]
    assert "tuning" not in found["images"]
    lines = {line["test"]: line for line in found["table"]}
    assert [lines[f"real pairs, {name}"]["images"] for name in ("canon", "nikon", "all")] == [2, 1, 3]
    hr, lr = ([read_image(made / "pairs" / kind / f"canon_{i}.png") for i in (2, 4)] for kind in ("HR", "LR"))
    bicubic = [
        psnr_y(to_tensor(upsample_by_pillow(small, 4)), to_tensor(large), 4).item()
        for small, large in zip(lr, hr, strict=True)
    ]
    assert lines["real pairs, canon"]["psnr_y"]["bicubic"] == pytest.approx(statistics.fmean(bicubic), abs=1e-4)


def test_gains_are_paired(record):
    scores = record["evaluation"]["scores"]
    (line,) = [line for line in record["evaluation"]["table"] if line["test"] == "real pairs, all"]
    ours, bicubic = (scores[row]["psnr_y"]["reporting"] for row in ("adversarial", "bicubic"))
    low, high = scipy.stats.ttest_rel(ours, bicubic).confidence_interval()
    gain = line["psnr_y_gain"]["bicubic"]
    assert (gain["low"], gain["high"]) == pytest.approx((low, high), abs=1e-6)
    (alone,) = [line for line in record["evaluation"]["table"] if line["test"] == "real pairs, nikon"]
    assert alone["psnr_y_gain"]["bicubic"]["low"] is None


def test_a_line_of_all_strengths(record):
    lines = {line["test"]: line for line in record["evaluation"]["table"]}
    strengths = [line for name, line in lines.items() if "(blur" in name]
    whole = lines["photographs, all but clean"]
    assert len(strengths) == 7
    assert whole["images"] == 2
    for row in ("bicubic", "classical", "adversarial"):
        assert whole["psnr_y"][row] == pytest.approx(statistics.fmean(line["psnr_y"][row] for line in strengths))


def test_sources_are_counted(record):
    counts = {source["prefix"]: source["trained"] + source["held_out"] for source in record["images"]}
    assert counts == {"cid22_": 6, "gb82_": 2}
    assert sum(source["held_out"] for source in record["images"]) == ship.QUICK["data.held_out"]
    with pytest.raises(DataError, match=r"unknown licence.*holiday\.png.*cid22_\*"):
        count_sources(["a/cid22_1.png", "a/holiday.png"], [])


def test_what_is_done_is_not_done_again(made, capsys):
    written = (made / "out" / f"{NAME}.safetensors").read_bytes()
    log = made / "work" / f"{NAME}_quick" / "adversarial" / "metrics.jsonl"
    before = log.stat().st_mtime_ns
    assert ship.main(arguments(made, "again")) == 0
    assert log.stat().st_mtime_ns == before
    assert (made / "again" / f"{NAME}.safetensors").read_bytes() == written
    assert "iterations are done" in capsys.readouterr().out


def test_a_run_of_another_length_is_no_twin(made, capsys, monkeypatch):
    monkeypatch.setitem(ship.QUICK, "train.iterations", 36)
    assert ship.main(arguments(made, "other")) == 3
    assert "holds a run of 40 updates, not of 36; choose another --work" in capsys.readouterr().err
    assert not (made / "other").exists()


def test_training_that_ends_early_writes_nothing(made, monkeypatch):
    monkeypatch.setattr(train, "main", lambda command: 143)
    assert ship.main(arguments(made, "stopped")) == 143
    assert not (made / "stopped").exists()


def test_all_files_or_none(made, record, monkeypatch):
    weights = made / "out" / f"{NAME}.safetensors"
    folder = made / "earlier"
    folder.mkdir()
    for suffix in SUFFIXES:
        (folder / f"{NAME}.{suffix}").write_text("earlier")

    def fail(record):
        raise KeyError("runs")

    monkeypatch.setattr(ship, "model_card", fail)
    with pytest.raises(KeyError):
        ship.write(folder, weights, {}, record, new_figure("", "", 1))
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        f"{NAME}.{suffix}": "earlier" for suffix in SUFFIXES
    }


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (["--pairs", "{tmp}/unpaired"], "holds HR/ and LR/"),
        (["--data.hr", "{tmp}/pairs"], "unknown licence"),
        (["--config", "{tmp}/none.yaml"], "attack.method is none"),
        (["--config", "{tmp}/pairs.yaml"], "trains on camera-captured pairs"),
        (["--config", "{tmp}/init.yaml"], "starts from nothing"),
    ],
)
def test_nothing_is_begun(made, tmp_path, capsys, changed, said):
    write_pairs(tmp_path / "pairs", ["a", "b", "c", "d", "e"])
    (tmp_path / "unpaired").mkdir()
    (tmp_path / "none.yaml").write_text("attack: {method: none}\n")
    (tmp_path / "pairs.yaml").write_text("attack: {method: pairs, mix: {pairs: somewhere}}\n")
    (tmp_path / "init.yaml").write_text("generator: {init: other.pth}\n")
    work = tmp_path / "work"
    command = [*arguments(made), "--work", str(work), *(part.format(tmp=tmp_path) for part in changed)]
    assert ship.main(command) == 2
    assert said in capsys.readouterr().err
    assert not work.exists()


def test_a_trial_never_takes_the_place_of_the_model(made, capsys):
    with pytest.raises(SystemExit):
        ship.main([*arguments(made), "--output", str(FOLDER)])
    assert "makes a useless model" in capsys.readouterr().err


def test_replays_count_as_updates():
    length = ["--train.iterations=10", "--train.warmup=4"]
    assert ship.updates(parse_config(length)) == 10
    assert ship.updates(parse_config([*length, "--attack.method=free", "--attack.replays=3"])) == 4 + 6 * 3


def test_the_card_tells_where_the_model_does_not_win(record):
    (line, *_) = record["evaluation"]["table"]
    record["evaluation"]["table"] = [line]
    for low, high, said in ((0.1, 0.3, None), (-0.1, 0.2, "may be no better than"), (-0.3, -0.1, "is worse than")):
        for row in ("bicubic", "classical"):
            line["psnr_y_gain"][row] = {"mean": (low + high) / 2, "low": low, "high": high}
        limits = model_card(record).partition("## Limits")[2]
        for phrase in ("may be no better than", "is worse than"):
            assert limits.count(f"It {phrase}") == (2 if phrase == said else 0)


def test_the_card_tells_what_networks_saw_and_who_shared_one(record):
    config = record["runs"]["adversarial"]["config"]
    config["attack"]["lens"], config["attack"]["random_start"] = None, 0.0
    assert config["degradation"]["num_networks"] == "batch"
    plain = model_card(record)
    assert "lens" not in plain
    assert "random deviation" not in plain
    assert "shared a network" not in plain
    del config["attack"]["lens"], config["attack"]["random_start"]  # as records were before there were any
    assert model_card(record) == plain

    config["attack"]["lens"] = {"blur": [2.0, 4.0], "sharpen": [0.5, 1.75], "sharpen_radius": 4.0}
    told = model_card(record)
    assert "a Gaussian blur of 2 to 4 pixels, then sharpening (unsharp masking) by 0.5 to 1.75;" in told
    config["attack"]["random_start"] = 0.25
    assert "The search began at a random deviation that takes 25% of the allowed error." in model_card(record)
    config["train"]["batch_size"], config["attack"]["mix"] = 8, {"share": 0.25, "method": "clean"}
    assert "all LR images but 25% of each batch (`clean` instead)" in model_card(record)
    config["attack"]["mix"]["noise"] = [0, 12.5]
    assert "all LR images but 25% of each batch (`clean` and Gaussian noise of 0 to 12.5 instead)" in model_card(record)
    for networks, said in ((2, "Every 3 images shared a network."), (1, "Every 6 images shared"), (6, None)):
        config["degradation"]["num_networks"] = networks
        told = model_card(record)
        assert said in told if said else "shared a network" not in told


@pytest.mark.parametrize("name", pretrained_names())
def test_the_packaged_card_is_made_from_its_record(name):
    assert (FOLDER / f"{name}.md").read_text() == model_card(json.loads((FOLDER / f"{name}.json").read_text()))


@pytest.mark.parametrize("name", pretrained_names())
def test_the_packaged_table_is_that_of_its_images_scores(name):
    found = json.loads((FOLDER / f"{name}.json").read_text())["evaluation"]
    (line,) = [line for line in found["table"] if line["test"] == "photographs, clean"]
    for row, means in line["psnr_y"].items():
        assert means == pytest.approx(statistics.fmean(found["scores"][row]["psnr_y"]["clean"]))


def test_updates_that_were_left_out_are_no_part_of_a_run_s_course(tmp_path):
    (tmp_path / "config.yaml").write_text("run_dir: run\ndata: {}\n")
    common = {"seconds": 1.0, "data_wait": 0.25}
    clean = {"step": 1, "loss": 0.5, "loss_before_attack": 0.5, "loss_after_attack": 0.5, "lr_psnr": None} | common
    left_out = {"step": 2, "loss": None, "loss_before_attack": 0.5, "loss_after_attack": None, "lr_psnr": 30} | common
    attacked = {"step": 3, "loss": 0.8, "loss_before_attack": 0.4, "loss_after_attack": 0.8, "lr_psnr": 31} | common
    records = [clean, left_out, attacked, {"step": 3, "validation": {}}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    course = ship._course(tmp_path)
    assert [(point["step"], point["loss"], point["gain"]) for point in course] == [(1, 0.5, None), (3, 0.8, 2.0)]
    found = summary(tmp_path)
    assert {name: part["count"] for name, part in found["steps"].items()} == {"clean": 1, "attacked": 1}
    assert found["seconds_in_steps"] == 3
    assert found["steps"]["attacked"]["median_gain"] == 2
