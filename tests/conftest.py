"""What holds for all tests."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """For tensors as small as these, threads that wait for each other cost more than they bring.

    For fixtures of all scopes: what a convolution rounds to can depend on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
