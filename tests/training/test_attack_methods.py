"""Short training runs against every attack: each raises the loss."""

import json
from pathlib import Path

import pytest

from andfast import train

SMALL = {
    "train.iterations": 3,
    "train.warmup": 1,
    "train.ramp": 0,
    "train.batch_size": 4,
    "train.patch_size": 32,
    "generator.features": 8,
    "generator.depth": 1,
    "degradation.channels": 8,
    "degradation.blocks": 1,
    "attack.steps": 2,
    "attack.step_ratio": 0.5,
    "data.workers": 0,
}


@pytest.mark.parametrize(
    "method",
    [
        {"attack.method": "pgd", "attack.return_iterate": "last"},
        {"attack.method": "yopo", "attack.inner_steps": 2},
        {"attack.method": "yopo", "attack.inner_steps": 2, "attack.return_iterate": "last"},
        {"attack.method": "subset", "degradation.num_networks": 1, "attack.share": 0.5},
        {"attack.method": "free", "attack.replays": 2},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_training_against_every_attack(method: dict, tmp_path: Path) -> None:
    assert train.main([f"--{key}={value}" for key, value in (SMALL | method | {"run_dir": tmp_path}).items()]) == 0
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    attacked = [record for record in records if record.get("lr_psnr")]
    assert attacked
    for record in attacked:
        assert record["loss_after_attack"] > 1.001 * record["loss_before_attack"]
        assert 20 < record["lr_psnr"] < 60
    assert list(tmp_path.glob("samples/step_*.png"))
