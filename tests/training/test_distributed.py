"""The processes of a run: their variables, their devices, and what of a step goes through DistributedDataParallel."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import torch
import torch.distributed as dist
from commands import as_options
from tiny_trainer import TINY, make, patches
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from andfast.models.frozen import AutocastModule
from andfast.training.distributed import World, rehearse
from andfast.training.options import parse_config
from andfast.training.trainer import Trainer

ADDRESS = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def environment(rank: str, size: str, local_rank: str) -> dict[str, str]:
    return {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}


def test_a_process_knows_its_place() -> None:
    world = World.from_environment(environment("5", "8", "1") | ADDRESS)
    assert (world.rank, world.size, world.local_rank, world.main) == (5, 8, 1, False)
    assert world.named("no") == "process 5: no"
    for alone in ({}, environment("0", "1", "0")):
        world = World.from_environment(alone)
        assert (world.rank, world.size, world.main) == (0, 1, True)
        assert world.named("no") == "no"


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"RANK": "0"}, "RANK is set in the environment, WORLD_SIZE, LOCAL_RANK is not; start"),
        ({"WORLD_SIZE": "2", "RANK": "1"}, "LOCAL_RANK is not; start several processes with torchrun"),
        (environment("2", "2", "0"), "RANK is 2, LOCAL_RANK 0 and WORLD_SIZE 2"),
        (environment("0", "2", "2"), "LOCAL_RANK 2 and WORLD_SIZE 2"),
        (environment("-1", "2", "0"), "RANK is '-1' in the environment; it must be a whole number"),
        (environment("0", "two", "0"), "WORLD_SIZE is 'two'"),
        (environment("0", "2", "0") | {"MASTER_ADDR": "here"}, "WORLD_SIZE is 2, and MASTER_PORT is not set in"),
    ],
)
def test_an_environment_that_cannot_be_is_refused(found: Mapping[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        World.from_environment(found)


def test_every_process_needs_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert World(3, 4, 1).device("auto") == torch.device("cuda", 1)
    assert chosen == [1]
    assert World(3, 4, 3).device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match=r"process 6 is number 2 on its machine .* where it sees 2 GPUs"):
        World(6, 8, 2).device("cuda")


def test_a_single_process_touches_nothing_of_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("init_process_group", "all_reduce", "all_gather_object", "broadcast_object_list"):
        monkeypatch.delattr(dist, name)
    world, module, value = World(), nn.Linear(1, 1), torch.ones(2)
    view = AutocastModule(module, torch.float32)
    world.join()
    with pytest.raises(OSError, match="as it is"), world.raise_together():
        raise OSError("as it is")
    world.connect(view, value)
    assert view.module is module
    assert world.mean(value) is value
    assert world.any(value) is value
    assert world.all_reduce_max(7) == 7
    assert world.local_rank_first(lambda: "made") == "made"
    assert world.gather("x") == ["x"]
    assert world.broadcast("x") == "x"
    assert not world.lost_peer(RuntimeError("gloo/transport: Connection closed by peer"))
    world.leave()
    assert not dist.is_initialized()


class Lonely(World):
    """A single process that wraps modules as several processes do."""

    def connect(self, view: AutocastModule, images: torch.Tensor) -> None:
        view.module = DistributedDataParallel(view.module)
        rehearse(view, images)


@pytest.fixture
def lonely() -> Iterator[World]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Lonely()
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("changed", "passes"),
    [
        ({}, [True]),
        ({"train__micro_batch": 1}, [False, False, False, True]),
        ({"attack__method": "free", "attack__replays": 3}, [True] * 3),
        ({"generator__name": "rrdbnet", "train__checkpoint_blocks": "true"}, [True]),
        ({"attack__method": "random"}, [True]),
    ],
)
def test_updates_alone_go_through_the_others(
    changed: dict[str, Any], passes: list[bool], lonely: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an update in micro-batches only the last one; weights are those of a single process."""
    trainer = Trainer(parse_config(as_options(TINY, **changed)), lonely)
    trainer.connect()
    seen: list[bool] = []
    forward = DistributedDataParallel.forward

    def watched(module: DistributedDataParallel, *inputs: torch.Tensor) -> torch.Tensor:
        seen.append(module.require_backward_grad_sync)
        return forward(module, *inputs)

    monkeypatch.setattr(DistributedDataParallel, "forward", watched)
    alone = make(**changed)
    for step in range(2):
        found, expected = (each.train_step(patches(seed=step)).read() for each in (trainer, alone))
        assert found == expected
    assert seen == 2 * passes
    for weight, expected in zip(trainer.generator.parameters(), alone.generator.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=1e-7)


def test_a_rehearsal_changes_nothing(lonely: World) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    before = copy.deepcopy(module.state_dict())
    lonely.connect(AutocastModule(module, torch.float32), torch.rand(2, 3, 8, 8))
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)
    assert all(weight.grad is None for weight in module.parameters())


@pytest.mark.parametrize(
    ("changed", "size", "message"),
    [
        ({"train__batch_size": 6}, 4, r"train.batch_size is 6; with 4 processes, .* must be a multiple of 4$"),
        ({"degradation__num_networks": 2}, 4, r"degradation.num_networks is 2; .* multiple of 4, or 'batch'$"),
        ({"attack__mix__share": 0.25}, 4, "attack.mix.share 0.25 of it is 2; "),
        ({"train__micro_batch": 4}, 4, "for each of 4 processes, which has train.batch_size 2: train.micro_batch is 4"),
    ],
)
def test_what_cannot_be_shared_evenly_is_refused(changed: dict[str, Any], size: int, message: str) -> None:
    base = {"train__batch_size": 8, "degradation__num_networks": "batch"}
    with pytest.raises(ValueError, match=message):
        parse_config(as_options(TINY, **(base | changed))).split(size)


def test_processes_share_batches_and_networks() -> None:
    config = parse_config(as_options(TINY, train__batch_size=16, degradation__num_networks=8, attack__mix__share=0.5))
    own = config.split(4)
    assert (own.train.batch_size, own.networks, own.mixed) == (4, 2, 2)
    assert (config.train.batch_size, config.networks, config.mixed) == (16, 8, 8)
    assert config.split(1) is config
    subset = parse_config(as_options(TINY, train__batch_size=16, degradation__num_networks=1, attack__method="subset"))
    assert (subset.split(4).train.batch_size, subset.split(4).networks) == (4, 1)
    every = parse_config(as_options(TINY, train__batch_size=16, degradation__num_networks="batch"))
    assert every.split(4).networks == 4
