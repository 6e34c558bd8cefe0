"""How long an all-reduce takes, by calculation, and how much of it a backward pass hides."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

# Those of DistributedDataParallel: a small first bucket, so that sending begins early.
_FIRST_BUCKET, _BUCKET = 2**20, 25 * 2**20


@dataclass(frozen=True)
class Network:
    """What connects GPUs.

    Attributes:
        machine: GPUs of a machine.
        inside, between: bytes a second that each GPU sends within its machine, and to another one.
        inside_hop, between_hop: seconds that a message takes there, however short.
    """

    machine: int
    inside: float
    between: float
    inside_hop: float
    between_hop: float

    def machines(self, gpus: int) -> int:
        """How many machines so many GPUs are.

        Raises:
            ValueError: they neither fit into one nor fill several.
        """
        if gpus > self.machine and gpus % self.machine:
            raise ValueError(f"{gpus} GPUs do not fill machines of {self.machine}")
        return -(-gpus // self.machine)


def ring(size: float, members: int, rate: float, hop: float) -> float:
    """Seconds of a ring: each member sends 2 (n - 1) pieces of an n-th, one after the other."""
    return 2 * (members - 1) * (size / members / rate + hop)


def tree(size: float, members: int, rate: float, hop: float) -> float:
    """Seconds of NCCL's pair of trees: all bytes up and down, in pieces that follow each other; few hops."""
    return 2 * (size / rate + math.ceil(math.log2(members)) * hop) if members > 1 else 0.0


def all_reduce(size: float, gpus: int, network: Network) -> float:
    """Seconds of one all-reduce of `size` bytes: a ring in each machine, and between machines what is faster.

    In a machine every GPU reduces its part of the bytes, exchanges that part with those of the other machines that
    have the same one, over its own share of the network, and hands it on inside.
    """
    machines = network.machines(gpus)
    inside = gpus // machines
    between = (size / inside, machines, network.between, network.between_hop)
    return ring(size, inside, network.inside, network.inside_hop) + min(ring(*between), tree(*between))


def buckets(size: float) -> Iterator[float]:
    """The pieces in which gradients of `size` bytes are reduced, in their order."""
    bucket = _FIRST_BUCKET
    while size > 0:
        yield min(bucket, size)
        size, bucket = size - bucket, _BUCKET


def reduced(size: float, gpus: int, network: Network) -> float:
    """Seconds of all buckets, one after the other."""
    return sum(all_reduce(bucket, gpus, network) for bucket in buckets(size))


def exposed(size: float, gpus: int, network: Network, backward: float) -> float:
    """Seconds from the end of a backward pass that takes `backward` seconds to that of the last bucket's all-reduce.

    Gradients become known at an even pace, and a bucket is sent when all of it is known and the one before it is
    through. That sending takes nothing from the computation is too good: NCCL's kernels occupy a few multiprocessors.
    """
    known = sent = 0.0
    for bucket in buckets(size):
        known += bucket
        sent = max(sent, backward * known / size) + all_reduce(bucket, gpus, network)
    return sent - backward
