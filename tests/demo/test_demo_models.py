"""Which models the page offers."""

import pytest
import torch
from upscaling_models import compact, nearest

from andfast.demo.models import load_offered
from andfast.models import ModelError, save_model
from andfast.pretrained import pretrained_names

CPU = torch.device("cpu")


def test_given_ones_come_before_andfasts_own(tmp_path):
    save_model(compact(2), tmp_path / "two.safetensors")
    save_model(nearest(3), tmp_path / "three.pth")
    given = [str(tmp_path / "two.safetensors"), f"Three={tmp_path / 'three.pth'}"]
    offered = load_offered(given, CPU, "float32", 32)
    assert list(offered) == ["two", "Three", *pretrained_names()]
    assert [one.scale for one in offered.values()][:2] == [2, 3]
    assert offered["two"].described == "two on cpu in float32"
    assert offered["two"].upscaler.tile_for(100, 100) == 32
    assert not any(weight.requires_grad for weight in offered["two"].model.parameters())


def test_a_folder_of_runs(tmp_path, caplog):
    """Of what a run leaves each model is there once, and what is none is named."""
    save_model(compact(), tmp_path / "runs" / "mine" / "model.safetensors")
    save_model(compact(), tmp_path / "runs" / "mine" / "model.pth")
    save_model(compact(), tmp_path / "runs" / "other" / "best.pth")
    (tmp_path / "runs" / "mine" / "state.pt").write_bytes(b"no model")
    assert list(load_offered([str(tmp_path / "runs")], CPU))[:2] == ["mine", "other/best"]
    (told,) = caplog.messages
    assert "state.pt" in told
    assert next(iter(load_offered([str(tmp_path / "runs" / "mine")], CPU))) == "mine"


def test_the_precision_of_all(tmp_path):
    save_model(compact(), tmp_path / "m.pth")
    offered = load_offered([str(tmp_path / "m.pth")], CPU, "bfloat16")
    assert offered["m"].upscaler.precision == offered["m"].view.dtype == torch.bfloat16


def test_what_is_no_model(tmp_path):
    (tmp_path / "empty").mkdir()
    save_model(compact(), tmp_path / "a.pth")
    for given, said in (
        ([str(tmp_path / "missing.pth")], "missing.pth: no such file"),
        ([str(tmp_path / "empty")], "empty: no models in this folder"),
        ([str(tmp_path / "a.pth"), str(tmp_path / "a.pth")], "two models have the title a"),
    ):
        with pytest.raises(ModelError, match=said):
            load_offered(given, CPU)
