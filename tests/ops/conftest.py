import pytest

from andfast.ops import backends, use_backend


@pytest.fixture(params=["the default", "reference"])
def default_and_reference(request: pytest.FixtureRequest):
    """Whatever runs where nothing is forced, and the reference."""
    if request.param == "reference":
        with use_backend("reference"):
            yield
    elif "cpu" in backends.unavailable:
        pytest.skip(backends.unavailable["cpu"])
    else:
        yield
