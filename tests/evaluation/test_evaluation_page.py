"""The numbers in docs/evaluation.md are those of the committed result files."""

import json
import re
from pathlib import Path

import pytest

from andfast.evaluation.models import BICUBIC
from andfast.metrics import load_pristine
from andfast.pretrained import load_pretrained, pretrained_names

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "evaluation.md").read_text()
RESULTS = {
    name: json.loads((ROOT / "studies" / "results" / f"{name}.json").read_text())
    for name in ("evaluation_x4", "evaluation_bicubic")
}


@pytest.mark.parametrize("name", RESULTS)
def test_means_are_of_the_images(name):
    content = RESULTS[name]
    for data, models in content["means"].items():
        for model, means in models.items():
            images = [each for each in content["images"] if (each["data"], each["model"]) == (data, model)]
            assert len(images) == content["data"][data]["images"]
            for metric, mean in means.items():
                values = [each[metric] for each in images if each[metric] is not None]
                assert mean == pytest.approx(sum(values) / len(values), abs=1e-9)
    assert content["failures"] == []
    assert "-dirty" not in content["commit"]


def test_the_table_is_that_of_the_file():
    content = RESULTS["evaluation_x4"]
    names = {name for name in pretrained_names() if load_pretrained(name).scale == 4}
    found = [[cell.strip().strip("*") for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if "|" in line]
    for data, models in content["means"].items():
        assert models.keys() == {BICUBIC, *names}
        for row in models:
            title = "bicubic interpolation" if row == BICUBIC else row
            (line,) = [line for line in found if line[0].startswith(f"`{data}`") and line[2] == title]
            assert line[1] == str(content["data"][data]["images"])
            values = models[row]
            digits = {"psnr_y": 2, "ssim_y": 4, "niqe": 3}
            assert line[3:] == [f"{values[key]:.{n}f}" if key in values else "" for key, n in digits.items()]


def test_the_guide_s_table_is_that_of_the_file():
    content = json.loads((ROOT / "studies" / "results" / "robust_span.json").read_text())
    guide = (ROOT / "docs" / "guide.md").read_text()
    (table,) = re.findall(r"<!-- guide: robust span -->\n(.*?)\n\n", guide, re.DOTALL)
    rows = {BICUBIC: BICUBIC, "classical": "as it was", "robust": "trained against the adversary"}
    lines = []
    for row, title in rows.items():
        found = [content["means"][data][row] for data in ("realsr_canon", "ntire19")]
        cells = [text for means in found for text in (f"{means['psnr_y']:.2f}", f"{means['ssim_y']:.4f}")]
        lines.append(f"| {' | '.join([title, *cells])} |")
    assert table.splitlines()[2:] == lines
    niqe = [content["means"]["realsr_canon"][row]["niqe"] for row in ("robust", "classical")]
    assert "{:.2f} for {:.2f} on Canon's".format(*niqe) in guide
    assert [content["data"][data]["images"] for data in ("realsr_canon", "ntire19")] == [44, 15]


def test_sentences_are_those_of_the_files():
    set5 = RESULTS["evaluation_bicubic"]["means"]["set5"][BICUBIC]
    assert f"reaches {set5['psnr_y']:.2f} dB and an SSIM of {set5['ssim_y']:.4f}" in PAGE.replace("\n", " ")
    for content in RESULTS.values():
        assert content["command"] in PAGE.replace(" \\\n    ", " ")
        assert f"PyTorch {content['machine']['versions']['torch'].partition('+')[0]}" in PAGE
    about = load_pristine().about
    assert f"{about['blocks']} sharp blocks of {about['images']} photographs" in PAGE.replace("\n", " ")
    digest = RESULTS["evaluation_x4"]["data"]["real_lr"]["settings"]["metrics"]["niqe"]["pristine_sha256"]
    assert digest == load_pristine().digest()
    assert re.fullmatch("[0-9a-f]{64}", digest)
