import json

import torch

from andfast import info
from andfast.ops import backends


def test_json(capsys):
    info.main(["--json"])
    shown = json.loads(capsys.readouterr().out)
    assert shown["versions"]["torch"] == torch.__version__
    assert shown["devices"]["cpu"]["threads"] == torch.get_num_threads()
    assert len(shown["devices"]) == 1 + torch.cuda.device_count()
    assert shown["operations"] == backends.status()


def test_text_gives_the_reason(capsys, monkeypatch):
    monkeypatch.setitem(backends.unavailable, "cpu", "it is not built")
    info.main([])
    shown = capsys.readouterr().out
    assert "projected_step" in shown
    assert "it is not built" in shown
    assert "ready" in shown
