"""Training steps against every attack: each raises the loss."""

from typing import Any

import pytest
from study_images import photograph
from tiny_trainer import make, patches

from andfast.training.samples import sample_sheet


@pytest.mark.parametrize(
    "method",
    [
        {"attack__method": "pgd", "attack__return_iterate": "last"},
        {"attack__method": "yopo", "attack__inner_steps": 2},
        {"attack__method": "yopo", "attack__inner_steps": 2, "attack__return_iterate": "last"},
        {"attack__method": "subset", "degradation__num_networks": 1, "attack__share": 0.5},
        {"attack__method": "free", "attack__replays": 2},
    ],
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_training_against_every_attack(method: dict[str, Any]) -> None:
    trainer = make(**method, attack__step_ratio=0.5)
    for seed in range(2):
        result = trainer.train_step(patches(seed=seed)).read()
        assert result.loss_after_attack > 1.001 * result.loss_before_attack
        assert 20 < result.lr_psnr < 60
    assert sample_sheet(trainer, [("image", photograph(0))]).any()
