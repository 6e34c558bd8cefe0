"""Read and write images in threads while the device computes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

Item = TypeVar("Item")
Loaded = TypeVar("Loaded")
Made = TypeVar("Made")


def pipeline(
    items: Iterable[Item],
    load: Callable[[Item], Loaded],
    make: Callable[[Item, Loaded], Made],
    store: Callable[[Item, Made], object],
    workers: int,
    ready: Callable[[Item, Loaded], bool] = lambda item, loaded: True,
) -> Iterator[tuple[Item, Exception | None]]:
    """Call store(item, make(item, load(item))) for each item, and yield it with its error or None, in order.

    An error of one item does not stop the others. `make` runs in the calling thread, in order; as many threads load as
    store, `workers`, or 0: everything runs in the calling thread. To bound the memory, at most `workers` items are
    loaded ahead, and as many wait to be stored. Before `make` those that wait are finished until `ready` returns true.
    If the caller stops early, begun items are finished.
    """
    if workers == 0:
        for item in items:
            try:
                store(item, make(item, load(item)))
            except Exception as error:
                yield item, error
            else:
                yield item, None
        return

    unread = iter(items)
    loads: list[tuple[Item, Future[Loaded]]] = []
    stores: list[tuple[Item, Future[object]]] = []
    loaders, storers = (ThreadPoolExecutor(workers) for _ in range(2))

    def begin_loads() -> None:
        for item in islice(unread, workers - len(loads)):
            loads.append((item, loaders.submit(load, item)))

    def failed(error: Exception) -> Future[object]:
        future: Future[object] = Future()
        future.set_exception(error)
        return future

    def finish() -> tuple[Item, Any]:
        item, stored = stores.pop(0)
        return item, stored.exception()

    try:
        begin_loads()
        while loads or stores:
            if loads:
                item, future = loads.pop(0)
                try:
                    loaded = future.result()
                    begin_loads()
                    while stores and not ready(item, loaded):
                        yield finish()
                    made = make(item, loaded)
                    del loaded
                    stores.append((item, storers.submit(store, item, made)))
                    del made
                except Exception as error:
                    begin_loads()
                    stores.append((item, failed(error)))
            while stores and (not loads or len(stores) > workers or stores[0][1].done()):
                yield finish()
    finally:
        loaders.shutdown(cancel_futures=True)
        storers.shutdown()  # what is made is also stored
