"""The processes of a run: torchrun starts one for each GPU, on one machine or several, and they train together."""

from __future__ import annotations

import inspect
import os
import sys
import threading
import time
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
# For the others to start, too.
_MEETING = timedelta(minutes=10)
# Processes wait for one that writes, validates or makes a cache of images. That another has died they learn at once.
_TIMEOUT = timedelta(hours=6)
# Of the lifelines: as long as nobody dies nothing comes.
_LIFE = timedelta(days=3650)
# What is said on the lifelines.
_BYE, _LOST = 1, 2
# So long a process that has lost another may take to end of its own accord: it may wait for its device in vain.
_GRACE_SECONDS = 20.0
# After an error of the network, the time for the news to arrive whether another process is gone.
_NEWS_SECONDS = 10.0

# DDP's option not to broadcast buffers in each forward pass: PyTorch 2.13 has another name for it.
_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)

_Object = TypeVar("_Object")


class LostError(RuntimeError):
    """Another process of the run has ended, and so must this one."""


class World:
    """All processes of a run, as one of them sees them. A single process touches nothing of `torch.distributed`.

    Every process must call `join`, `leave`, `together`, `in_turns`, `mean`, `any`, `agree`, `gather`, `broadcast` and
    `connect`, and pass through what `connect` was given, in the same order as the others. When a process dies, or ends
    without `leave`, such calls raise a RuntimeError in the others, and `is_broken` says that this was why. One that
    waits for its device in vain is ended.

    Args:
        rank: index of this process, 0 <= rank < size.
        size: number of processes.
        local_rank: index of this process on its machine, which is that of its GPU.
    """

    def __init__(self, rank: int = 0, size: int = 1, local_rank: int = 0) -> None:
        self.rank, self.size, self.local_rank = rank, size, local_rank
        self._lost = threading.Event()
        self._lifelines: dict[int, threading.Thread] = {}
        self._group: dist.ProcessGroup | None = None
        self._first_loss = threading.Lock()
        self._left = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> World:
        """What torchrun says, or a single process where it says nothing.

        Raises:
            ValueError: it says half of it, or what cannot be.
        """
        found = {name: environment[name] for name in _VARIABLES if name in environment}
        if not found:
            return cls()
        missing = [name for name in _VARIABLES if name not in found]
        if missing:
            raise ValueError(
                f"{', '.join(found)} stands in the environment, {', '.join(missing)} does not; start several processes "
                "with torchrun, which sets all of them, or unset them for a single one"
            )
        for name, value in found.items():
            if not value.isdecimal():
                raise ValueError(f"{name} is {value!r} in the environment; it must be a whole number, 0 or more")
        rank, size, local_rank = (int(found[name]) for name in _VARIABLES)
        if not 0 <= rank < size or not 0 <= local_rank < size:
            raise ValueError(
                f"RANK is {rank}, LOCAL_RANK {local_rank} and WORLD_SIZE {size} in the environment; wanted 0 <= RANK, "
                "LOCAL_RANK < WORLD_SIZE"
            )
        missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if size > 1 and missing:
            raise ValueError(
                f"WORLD_SIZE is {size}, and {', '.join(missing)} does not stand in the environment; the processes of a "
                "run find each other by the address and port of the machine of process 0"
            )
        return cls(rank, size, local_rank)

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and speaks for all."""
        return self.rank == 0

    @property
    def patience(self) -> int:
        """How many steps to take before the processes agree again whether to stop.

        Gloo's ring takes twice as many hops as there are processes, so that this costs hundreds of them a part of each
        step (docs/scaling.md).
        """
        return max(self.size // 16, 1)

    def named(self, message: str) -> str:
        """A message that begins with who says it, where that is not the main process."""
        return message if self.main else f"process {self.rank}: {message}"

    def device(self, name: str) -> torch.device:
        """As `choose_device`; of several GPUs the process's own.

        Raises:
            ValueError: it is not there.
        """
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
        """Find the other processes, and wait for all of them; ends this one, should one die on the way.

        Raises:
            RuntimeError: they do not come, or there is no network to them.
        """
        if self.size == 1:
            return
        # Gloo's own meetings last as long as what it is to wait for later.
        late = threading.Timer(_MEETING.total_seconds() + 1, self._give_up)
        late.daemon = True
        late.start()
        nccl = torch.cuda.is_available() and dist.is_nccl_available()
        backend = "cpu:gloo,cuda:nccl" if nccl else "gloo"
        store, rank, size = next(dist.rendezvous("env://", timeout=_MEETING))
        store.set_timeout(_MEETING)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        # A receiver learns of a closed connection, however its process came to end. The others hang on the main one.
        self._group = dist.new_group(backend="gloo", timeout=_LIFE)
        peers = range(1, self.size) if self.main else [0]
        self._lifelines = {peer: threading.Thread(target=self._hold, args=(peer,), daemon=True) for peer in peers}
        for line in self._lifelines.values():
            line.start()
        late.cancel()

    def _give_up(self) -> None:
        message = f"the {self.size} processes of this run have not found each other in {_MEETING}; are all there?"
        print(f"error: {self.named(message)}", file=sys.stderr, flush=True)
        os._exit(2)

    def leave(self) -> None:
        """Part when all is done, and all have got here.

        Raises:
            LostError: not all have.
        """
        if self.size == 1:
            return
        if not self.main:
            self._say(0, _BYE)
        while any(line.is_alive() for line in self._lifelines.values()) and not self._lost.is_set():
            time.sleep(0.005)
        if self._lost.is_set():
            raise LostError(self.epitaph)
        if self.main:
            for peer in self._lifelines:
                self._say(peer, _BYE)
        dist.destroy_process_group()
        self._left = True

    def end(self, status: int) -> int:
        """The exit status of this process; one that has not left ends here.

        The end of the others would wake its threads while the interpreter goes down, which aborts it.
        """
        if self._lifelines and not self._left:
            for stream in (sys.stdout, sys.stderr):
                with suppress(OSError):
                    stream.flush()
            os._exit(status)
        return status

    @property
    def epitaph(self) -> str:
        """What there is to say when another process is gone."""
        return "another process of this run has ended, and without it the others cannot go on"

    def is_broken(self) -> bool:
        """Whether another process is gone: what to ask after an error that may come from that."""
        return self.size > 1 and self._lost.wait(_NEWS_SECONDS)

    def _hold(self, peer: int) -> None:
        """Wait for what a process says at its end, or for its end."""
        word = torch.zeros(1, dtype=torch.int64)
        try:
            dist.recv(word, src=peer, group=self._group)
        except RuntimeError:
            word.fill_(_LOST)
        if word.item() == _BYE:
            return
        with self._first_loss:
            if self._lost.is_set():
                return
            self._lost.set()
        if self.main:
            for other in self._lifelines:
                self._say(other, _LOST)
        time.sleep(_GRACE_SECONDS)
        print(f"error: {self.named(self.epitaph)}", file=sys.stderr, flush=True)
        os._exit(3)

    def _say(self, peer: int, word: int) -> None:
        with suppress(RuntimeError):  # it may be gone, too
            dist.send(torch.tensor([word]), dst=peer, group=self._group)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is wrong (ValueError, OSError) in one process inside is wrong in all; nothing in it may wait for others.

        Raises:
            ValueError: with each distinct message once, and whose it is.
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
            raise ValueError(_all_of(reasons)) from own

    def in_turns(self, make: Callable[[], _Object]) -> _Object:
        """What `make` gives: the first process of each machine calls it, and then the others, who find its work done.

        Raises:
            ValueError: as `together`.
        """
        for first in (True, False) if self.size > 1 else (True,):
            with self.together():
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
        """1. or true where a process has that; in place."""
        if self.size > 1:
            dist.all_reduce(flag, dist.ReduceOp.MAX)
        return flag

    def agree(self, number: int) -> int:
        """The largest of the processes' numbers, without waiting for a device."""
        if self.size == 1:
            return number
        largest = torch.tensor([number])
        dist.all_reduce(largest, dist.ReduceOp.MAX)
        return int(largest)

    def gather(self, value: _Object) -> list[_Object]:
        """The values of all processes, in the order of their ranks. A value is anything that can be pickled."""
        values: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def broadcast(self, value: _Object) -> _Object:
        """The main process's value, which is anything that can be pickled."""
        values = [value]
        if self.size > 1:
            dist.broadcast_object_list(values, src=0)
        return values[0]

    def connect(self, view: AutocastModule, images: Tensor) -> None:
        """Have a view pass through its module with the main process's weights, and its gradients be the means of all.

        Args:
            view: its module is wrapped.
            images: any that the module takes.
        """
        if self.size > 1:
            view.module = DistributedDataParallel(view.module, gradient_as_bucket_view=True, **{_BUFFERS: False})
            rehearse(view, images)


def _all_of(reasons: list[str | None]) -> str:
    """Each distinct reason once, and in which processes it holds, unless that is all."""
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
    """Around the passes of a micro-batch: processes average gradients in the last one alone, of the whole batch."""
    return nullcontext() if last or not isinstance(module, DistributedDataParallel) else module.no_sync()


def rehearse(view: AutocastModule, images: Tensor) -> None:
    """Let a wrapped module settle, on any images that it takes; its weights and buffers stay as they are.

    After its first backward pass it lays the gradients out in the order in which they came, and where one lies decides
    in which order it is added up. Each start must have that behind it, or a run that was resumed would round otherwise.
    """
    buffers = [buffer.clone() for buffer in view.module.buffers()]
    with torch.compiler.set_stance("force_eager"):
        view(images).sum().backward()
    for weight in view.module.parameters():
        weight.grad = None
    for buffer, before in zip(view.module.buffers(), buffers, strict=True):
        buffer.copy_(before)
