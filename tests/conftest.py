"""What holds for all tests."""

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

# Verifying and timing kernels takes seconds, and what is fastest may differ from one run of the tests to the next.
os.environ["ANDFAST_MEASURE"] = "0"

if importlib.util.find_spec("triton") is not None:
    # Triton's own library of functions is interpreted, too, only if the variable is there before it is imported, which
    # andfast does. Tests, and what they start, shall not see it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_INTERPRET", os.environ.get("TRITON_INTERPRET", "0" if torch.cuda.is_available() else "1"))
        import triton  # noqa: F401


@pytest.fixture(autouse=True)
def _nothing_decided() -> None:
    """Other tests patch what candidates there are."""
    from andfast.ops import dispatch  # after triton, see above

    dispatch._decided.cache_clear()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """For tensors as small as these, threads that wait for each other cost more than they bring.

    For fixtures of all scopes: what a convolution rounds to can depend on the number of threads.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
