"""A search as a CUDA graph: its thousands of launches then cost the host one, and nothing waits for the device."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Hashable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from andfast.attack.base import Search, SearchResult
from andfast.attack.budget import BUDGET_SLACK_DB, SearchInputs, network_psnr
from andfast.losses import Objective

# Nearly always, a deviation is within its budget after so many tries; where it is not, the image is a little milder.
TRIES = 3


class Graph(Protocol):
    """What `CapturedSearch` needs of a graph of launches."""

    def record(self, function: Callable[[], SearchResult]) -> SearchResult:
        """Run `function` to record its launches; returns its result, whose memory every `replay` writes."""

    def replay(self) -> None:
        """Launch again what was recorded, on the same memory."""

    @staticmethod
    def has_room(device: torch.device) -> bool:
        """Whether the device's memory holds what a graph keeps for itself."""

    @staticmethod
    def wait(device: torch.device) -> None:
        """Wait for all launches on the device."""


class CudaGraph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def record(self, function: Callable[[], SearchResult]) -> SearchResult:
        # Other threads, such as the one that pins batches, may use the device meanwhile.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return function()

    def replay(self) -> None:
        self._graph.replay()

    @staticmethod
    def has_room(device: torch.device) -> bool:
        # Nobody else can use the memory of a graph: beside the rest of a step, a search needs room of its own.
        live, peak = torch.cuda.memory_allocated(device), torch.cuda.max_memory_allocated(device)
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - live
        return free > 2.2 * (peak - live)

    @staticmethod
    def wait(device: torch.device) -> None:
        torch.cuda.synchronize(device)


class CapturedSearch:
    """Runs a search, from its fifth time on as a CUDA graph: where that gives the same result, and is faster.

    A graph repeats the launches of one search on the same memory; its inputs are copied there. So it holds for one
    size, one objective, and weights that are updated in place, and the number of tries for the budget is fixed: for
    all searches (`SearchInputs.tries`), so that results do not depend on what is decided. The first searches run as
    they are; a graph is then recorded, and compared with the search on the next inputs. Whatever speaks against it is
    no error: `decision` says it, and searches run on as they are.

    Args:
        budget: whether deviations have a budget at all; without, the first try is the last one.
        keep_hr: a context for the search's HR images, in which the objective keeps what depends on them alone.
        report: called with `decision`, once it is known.
        graph: the kind of graph.

    Attributes:
        decision: how searches run, and why, for people; None: not known yet.
    """

    def __init__(
        self,
        budget: bool = True,
        keep_hr: Callable[[Tensor], AbstractContextManager[None]] = lambda hr: nullcontext(),
        report: Callable[[str], None] = lambda decision: None,
        graph: type[Graph] = CudaGraph,
    ) -> None:
        self._tries: int | None = TRIES if budget else 1
        self._keep_hr, self._report, self._graph_type = keep_hr, report, graph
        self._key: Hashable = None
        self._recorded: _Recorded | None = None
        self._count = 0
        self.decision: str | None = None

    def __call__(self, search: Search, inputs: SearchInputs, objective: Objective) -> SearchResult:
        """`search(inputs, objective)`."""
        network = inputs.network
        key = (search, objective, network.layout, network.num_networks, network.dtype, inputs.hr.shape, inputs.hr.dtype)
        if key != self._key:
            self._key, self._recorded, self._count, self.decision = key, None, 0, None
        self._count += 1
        inputs = replace(inputs, tries=self._tries)
        if self._recorded is not None and self.decision is not None:
            return self._recorded(inputs)
        if self._count > 1 and self.decision is None:
            self._examine(search, replace(inputs, ask=False), objective)
        return search(inputs, objective)

    def _examine(self, search: Search, inputs: SearchInputs, objective: Objective) -> None:
        """What comes before a decision, beside the second search and those after it."""
        try:
            if self._count == 2:
                search(inputs, objective)  # compiles what is launched only without asking
            elif self._count == 3:
                if not self._graph_type.has_room(inputs.hr.device):
                    raise _NotUsedError("its memory would be missing elsewhere")
                self._recorded = _Recorded(search, inputs, objective, self._graph_type(), self._keep_hr)
            elif self._recorded is not None:
                self._compare(self._recorded, search, inputs, objective)
        except Exception as error:  # a launch that cannot be captured, no memory; a fault of the search comes again
            first: BaseException = error
            while first.__context__ is not None:  # the end of a failed capture fails, too
                first = first.__context__
            self._recorded = None
            self._decide(f"the attack runs without a CUDA graph: {str(first).partition(chr(10))[0]}")

    def _compare(self, recorded: _Recorded, search: Search, inputs: SearchInputs, objective: Objective) -> None:
        """Decide for the recorded graph, or raise `_NotUsedError`."""
        expected, again = (search(inputs, objective) for _ in range(2))
        if not _equal(expected, again):
            raise _NotUsedError("the search does not give the same bits twice here")
        if not _equal(expected, recorded(inputs)):
            raise _NotUsedError("its replay does not give what the search gives")
        reached, possible = (
            network_psnr(result.lr, inputs.clean, len(inputs.budget_db)).mean()
            for result in (expected, search(replace(inputs, tries=None, ask=True), objective))
        )
        if reached > possible + BUDGET_SLACK_DB:
            self._tries = None
            raise _NotUsedError(f"with {TRIES} tries for the budget it finds {reached - possible:.1f} dB less")
        asking = replace(inputs, ask=True)
        plain = self._seconds(lambda: search(asking, objective), inputs.hr.device)
        replayed = self._seconds(lambda: recorded(inputs), inputs.hr.device)
        if replayed > 0.97 * plain:
            raise _NotUsedError(f"it would take {replayed / plain:.2f} times as long")
        self._decide(f"the attack runs as a CUDA graph, in {replayed / plain:.2f} of the time")

    def _seconds(self, function: Callable[[], object], device: torch.device, runs: int = 3) -> float:
        """The least time of a few runs."""
        times = []
        for _ in range(runs):
            self._graph_type.wait(device)
            begin = time.perf_counter()
            function()
            self._graph_type.wait(device)
            times.append(time.perf_counter() - begin)
        return min(times)

    def _decide(self, decision: str) -> None:
        self.decision = decision
        self._report(decision)


class _NotUsedError(Exception):
    """Why a graph is not used, though nothing failed."""


class _Recorded:
    """A search as a graph."""

    def __init__(
        self,
        search: Search,
        inputs: SearchInputs,
        objective: Objective,
        graph: Graph,
        keep_hr: Callable[[Tensor], AbstractContextManager[None]],
    ) -> None:
        network = copy.copy(inputs.network)
        network._buffers = dict(network._buffers)  # a shallow copy shares the dictionary
        network.theta_id, network.noise_seed = network.theta_id.clone(), network.noise_seed.clone()
        hr = inputs.hr.clone()
        self._inputs = replace(
            inputs,
            network=network,
            hr=hr,
            input=hr if inputs.input is inputs.hr else inputs.input.clone(),
            clean=inputs.clean.clone(),
            budget_db=inputs.budget_db.clone(),
            drawn=None if inputs.drawn is None else inputs.drawn.clone(),
        )

        def run() -> SearchResult:
            with keep_hr(hr):
                return search(self._inputs, objective)

        self._graph = graph
        self._result = graph.record(run)

    def __call__(self, inputs: SearchInputs) -> SearchResult:
        for own, given in zip(_inputs(self._inputs), _inputs(inputs), strict=True):
            own.copy_(given)
        self._graph.replay()
        return self._result.clone()


def _inputs(inputs: SearchInputs) -> list[Tensor]:
    """All tensors that a search reads, but for weights."""
    network = inputs.network
    behind_lens = [] if inputs.input is inputs.hr else [inputs.input]
    drawn = [] if inputs.drawn is None else [inputs.drawn]
    return [network.theta_id, network.noise_seed, inputs.hr, *behind_lens, inputs.clean, inputs.budget_db, *drawn]


def _equal(one: SearchResult, other: SearchResult) -> bool:
    """Whether two results have the same bits; NaN equals NaN."""
    pairs = zip(one.tensors(), other.tensors(), strict=True)
    return all(torch.equal(a.nan_to_num(nan=-1.0), b.nan_to_num(nan=-1.0)) for a, b in pairs)
