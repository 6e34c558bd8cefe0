"""README's promises, as far as they can be kept in seconds; its commands are what CI runs."""

import re
from pathlib import Path

import pytest

import andfast

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    andfast.save_model(andfast.Compact(scale=4, features=8, convs=1), tmp_path / "runs/andnet/model.safetensors")
    names: dict[str, object] = {}
    exec(example, names)
    result = names["result"]
    assert isinstance(result, andfast.AttackResult)
    assert result.lr.shape == (4, 3, 16, 16)
    assert (result.lr_psnr >= 22).all()
    assert (result.loss_after > result.loss_before).all()


def test_files_it_points_to_exist() -> None:
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert links
    for link in [*links, *re.findall(r"configs/\w+\.yaml", README)]:
        assert (ROOT / link).exists(), link
