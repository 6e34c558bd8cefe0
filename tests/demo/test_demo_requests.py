"""The page as scripts meet it, which ask for what no button asks for."""

import json

import pytest
import torch
from PIL import Image
from upscaling_models import compact

from andfast.demo.models import Offered
from andfast.inference.upscaler import Upscaler
from andfast.models.frozen import FrozenModule

pytest.importorskip("gradio")
from fastapi.testclient import TestClient

from andfast.demo.page import build


@pytest.fixture
def client(tmp_path, monkeypatch):
    """The page, and the folder of its uploads."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # so that it is what it was afterwards
    monkeypatch.chdir(tmp_path)
    model, folder = compact(), tmp_path / "kept"
    offered = {"tiny": Offered("tiny", "tiny.pth", Upscaler(model), FrozenModule(model, torch.float32))}
    with TestClient(build(offered, folder, 10**4)) as client:
        yield client, folder


def look(client, path):
    """What comes of a request to read a file of this machine, through the queue as the page does it."""
    depends = client.get("/config").json()["dependencies"]
    (reading,) = (each["id"] for each in depends if each["targets"][0][1] == "change")
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}}
    asked = {"data": [[file], None], "fn_index": reading, "session_hash": path.name}
    assert client.post("/gradio_api/queue/join", json=asked).is_success
    events = client.get(f"/gradio_api/queue/data?session_hash={path.name}").text
    told = [json.loads(line.removeprefix("data: ")) for line in events.splitlines() if line]
    (completed,) = (each for each in told if each["msg"] == "process_completed")
    return completed


def test_only_uploads_are_read(client, tmp_path):
    client, folder = client
    outside = tmp_path / "outside.png"  # in the working directory even
    Image.new("RGB", (20, 10)).save(outside)
    uploaded = client.post("/gradio_api/upload", files={"files": ("inside.png", outside.read_bytes())}).json()[0]
    assert look(client, folder.joinpath(uploaded))["success"]
    refused = look(client, outside)
    assert not refused["success"]
    assert "not uploaded" in refused["output"]["error"]
    assert not list(folder.rglob("outside.png"))
    assert client.get(f"/gradio_api/file={outside}").status_code == 403
