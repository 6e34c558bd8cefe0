"""The processes of a run: torchrun or srun starts one for each GPU, on one machine or several; they train together."""

from __future__ import annotations

import inspect
import os
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from andfast.models.frozen import AutocastModule
from andfast.utils.devices import choose_device

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
# How long to wait for all processes to start.
_START_TIMEOUT = timedelta(minutes=10)
# Processes wait for the one that writes, validates or makes a cache of images.
_TIMEOUT = timedelta(hours=6)

# DDP's option not to broadcast buffers in each forward pass: PyTorch 2.13 has another name for it.
_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)

_Object = TypeVar("_Object")


class World:
    """The processes of a run, as one of them uses them. A single process calls nothing of `torch.distributed`.

    All processes call the methods that communicate, and run the modules given to `connect`, in the same order. When one
    dies, the others' collectives raise an error, which `lost_peer` recognises; torchrun, or srun with
    --kill-on-bad-exit, ends a process that waits for a GPU in vain.

    Args:
        rank: index of this process, 0 <= rank < size.
        size: number of processes.
        local_rank: index of this process, and of its GPU, on its machine.
    """

    peer_lost_message = "another process of this run has ended, and without it the others cannot go on"

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """Read the variables that torchrun sets, or raise a ValueError; without them there is a single process."""
        given = {name: environment[name] for name in _VARIABLES if name in environment}
        if not given:
            return cls()
        if missing := [name for name in _VARIABLES if name not in given]:
            raise ValueError(
                f"{', '.join(given)} is set in the environment, {', '.join(missing)} is not; start several processes "
                "with torchrun, which sets all of them, or unset them for a single one"
            )
        for name, value in given.items():
            if not value.isdecimal():
                raise ValueError(f"{name} is {value!r} in the environment; it must be a whole number, 0 or more")
        rank, size, local_rank = (int(given[name]) for name in _VARIABLES)
        if not 0 <= rank < size or not 0 <= local_rank < size:
            raise ValueError(
                f"RANK is {rank}, LOCAL_RANK {local_rank} and WORLD_SIZE {size} in the environment; wanted 0 <= RANK, "
                "LOCAL_RANK < WORLD_SIZE"
            )
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if size > 1 and missing:
            raise ValueError(
                f"WORLD_SIZE is {size}, and {', '.join(missing)} is not set in the environment; the processes of a "
                "run find each other by the address and port of the machine of process 0"
            )
        return cls(rank, size, local_rank)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints for all."""
        return self.rank == 0

    @property
    def stop_check_interval(self) -> int:
        """The number of steps after which the processes again agree whether to stop."""
        # Gloo's ring takes twice as many hops as there are processes: noticeable with hundreds (docs/scaling.md).
        return max(self.size // 16, 1)

    def named(self, message: str) -> str:
        """The message, beginning with the process unless that is the main one."""
        return message if self.main else f"process {self.rank}: {message}"

    def device(self, name: str) -> torch.device:
        """As `choose_device`; with several processes this one's GPU."""
        device = choose_device(name)
        if self.size == 1 or device.type != "cuda":
            return device
        gpus = torch.cuda.device_count()
        if self.local_rank >= gpus:
            raise ValueError(
                f"device cuda: process {self.rank} is number {self.local_rank} on its machine (LOCAL_RANK, from 0), "
                f"where it sees {gpus} GPU{'s' * (gpus != 1)}; start one process for each GPU (--nproc-per-node)"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def join(self) -> None:
        """Connect to the other processes and wait for them; raises a RuntimeError if they cannot be reached."""
        if self.size == 1:
            return
        # Gloo connects with the timeout of later collectives, which is too long where a process has died meanwhile.
        timer = threading.Timer(_START_TIMEOUT.total_seconds() + 1, self._exit_without_others)
        timer.daemon = True
        timer.start()
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        store, rank, size = next(dist.rendezvous("env://", timeout=_START_TIMEOUT))
        store.set_timeout(_START_TIMEOUT)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        timer.cancel()

    def _exit_without_others(self) -> None:
        message = f"the {self.size} processes of this run have not found each other in {_START_TIMEOUT}; are all there?"
        print(f"error: {self.named(message)}", file=sys.stderr, flush=True)
        os._exit(2)

    def leave(self) -> None:
        """Wait until all processes are done; raises a RuntimeError if one has ended before."""
        self.all_reduce_max(0)

    def end(self, status: int) -> int:
        """Return the exit status of this process; of several processes exit with it at once."""
        # Gloo's threads notice that other processes end: they would abort an interpreter that shuts down, and where two
        # processes destroy the group at the same time, one of them can hang.
        if self.size > 1:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(status)
        return status

    def lost_peer(self, error: BaseException) -> bool:
        """Whether an error of a collective means that another process has ended."""
        # Gloo raises plain RuntimeErrors, whose message begins with the file in gloo's sources.
        return self.size > 1 and (isinstance(error, dist.DistError) or "gloo/" in str(error))

    @contextmanager
    def raise_together(self) -> Iterator[None]:
        """Raise a ValueError or OSError of one process in all, as a ValueError with all messages.

        The code inside may not wait for other processes.
        """
        if self.size == 1:
            yield
            return
        own = None
        try:
            yield
        except (ValueError, OSError) as error:
            own = error
        reasons = self.gather(None if own is None else str(own))
        if any(reason is not None for reason in reasons):
            raise ValueError(_join_reasons(reasons)) from own

    def local_rank_first(self, make: Callable[[], _Object]) -> _Object:
        """Return `make()`, called on each machine first by one process, then by the others, who can use its files."""
        for first in (True, False) if self.size > 1 else (True,):
            with self.raise_together():
                if first == (self.local_rank == 0):
                    made = make()
        return made

    def mean(self, values: Tensor) -> Tensor:
        """The mean over the processes."""
        if self.size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.size

    def any(self, flag: Tensor) -> Tensor:
        """The largest value of all processes, elementwise and in place: 1. or true where any process has that."""
        if self.size > 1:
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return flag

    def all_reduce_max(self, number: int) -> int:
        """The largest of the processes' numbers, without waiting for a device."""
        if self.size == 1:
            return number
        largest = torch.tensor([number])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: _Object) -> list[_Object]:
        """The values of all processes, which can be pickled, in the order of their ranks."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: _Object) -> _Object:
        """The main process's value, which can be pickled."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def connect(self, autocast: AutocastModule, images: Tensor) -> None:
        """Wrap a module in DistributedDataParallel: all start with the main process's weights and average gradients.

        Args:
            autocast: its module is wrapped.
            images: any valid input of the module.
        """
        if self.size > 1:
            module = autocast.module
            autocast.module = DistributedDataParallel(module, gradient_as_bucket_view=True, **{_BUFFERS: False})
            rehearse(autocast, images)


def _join_reasons(reasons: list[str | None]) -> str:
    """Each distinct reason once, with its processes unless that is all of them."""
    ranks: dict[str, list[int]] = {}
    for rank, reason in enumerate(reasons):
        if reason is not None:
            ranks.setdefault(reason, []).append(rank)
    if len(ranks) == 1 and len(next(iter(ranks.values()))) == len(reasons):
        return next(iter(ranks))
    return "\n".join(
        f"process{'es' * (len(who) > 1)} {', '.join(map(str, who))}: {reason}" for reason, who in ranks.items()
    )


def no_sync_until_last(module: nn.Module, last: bool) -> AbstractContextManager[None]:
    """Around a micro-batch's passes: processes average gradients only in the last one, those of the whole batch."""
    return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()


def rehearse(autocast: AutocastModule, images: Tensor) -> None:
    """Run a wrapped module's first forward and backward pass; its weights and buffers do not change.

    After the first backward pass DDP rebuilds its buckets in the order in which gradients came, which decides the order
    of their summation. Each start must be past that, or a resumed run would round differently.
    """
    module = autocast.module
    buffers = [buffer.clone() for buffer in module.buffers()]
    with torch.compiler.set_stance("force_eager"):
        autocast(images).sum().backward()
    module.zero_grad()
    for buffer, saved in zip(module.buffers(), buffers, strict=True):
        buffer.copy_(saved)
