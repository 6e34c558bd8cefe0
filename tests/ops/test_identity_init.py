"""Identity networks, against NumPy's pseudoinverse and products in float64."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from andfast.ops import dispatch
from andfast.ops.identity_init import identity_centres

pytestmark = pytest.mark.usefixtures("default_and_reference")

WIDTHS = [3, *[64] * 10, 3]  # the paper's
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def draw(count: int, widths: list[int] = WIDTHS, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[np.ndarray]:
    centres = identity_centres(count, widths, dtype, torch.Generator().manual_seed(seed))
    assert all(centre.dtype == torch.float32 for centre in centres)
    return [centre.double().numpy() for centre in centres]


def product(centres: list[np.ndarray]) -> np.ndarray:
    merged = centres[0]
    for centre in centres[1:]:
        merged = centre @ merged
    return merged


@pytest.mark.parametrize("widths", [WIDTHS, [3, 8, 3], [3, 16, 5, 16, 3], [1, 4, 4, 1]])
def test_shapes(widths):
    assert [c.shape for c in draw(2, widths)] == [(2, after, before) for before, after in pairwise(widths)]


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_is_the_identity(dtype):
    merged = product(draw(8, dtype=dtype))
    # The last centre is rounded to float32, 6e-8 of a value, and multiplied by sums of 64.
    np.testing.assert_allclose(merged, np.broadcast_to(np.eye(3), (8, 3, 3)), atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_last_is_numpy_s_pseudoinverse_of_the_product_as_rounded(dtype):
    centres = draw(8, dtype=dtype)
    expected = np.stack([np.linalg.pinv(merged) for merged in product(centres[:-1])])
    np.testing.assert_allclose(centres[-1], expected, rtol=2e-7, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_all_but_the_last_are_representable(dtype):
    *centres, last = identity_centres(2, WIDTHS, dtype, torch.Generator().manual_seed(0))
    for centre in centres:
        assert torch.equal(centre.to(dtype).float(), centre)
    # And not rounded more than that: the same draws, to half a unit in the last place.
    whole = identity_centres(2, WIDTHS, torch.float32, torch.Generator().manual_seed(0))
    for centre, exact in zip(centres, whole[:-1], strict=True):
        torch.testing.assert_close(centre, exact, rtol=torch.finfo(dtype).eps / 2, atol=1e-7)
    assert not torch.equal(last.to(dtype).float(), last)


def test_standard_deviation_is_xavier_s():
    """Glorot and Bengio, Eq. 12: variance 2 / (in + out)."""
    widths = [3, 64, 64, 32, 3]
    for centre in draw(40, widths)[:-1]:
        values = centre.ravel()
        expected = (2 / (centre.shape[1] + centre.shape[2])) ** 0.5
        assert values.std() == pytest.approx(expected, rel=4 / (2 * values.size) ** 0.5)
        assert abs(values.mean()) < 4 * expected / values.size**0.5


def test_products_are_well_conditioned():
    assert np.linalg.cond(product(draw(8)[:-1])).max() < 10


def test_networks_and_draws_differ_and_seeds_reproduce():
    first, again, other = draw(3), draw(3), draw(3, seed=1)
    for layer, centre in enumerate(first):
        np.testing.assert_array_equal(centre, again[layer])
        assert not np.allclose(centre, other[layer])
        assert not np.allclose(centre[0], centre[1])
        assert not np.allclose(centre[1], centre[2])
    assert not np.allclose(first[1], first[2])


def test_torch_s_own_generator_is_the_default():
    torch.manual_seed(7)
    first = identity_centres(1, [3, 4, 3])
    torch.manual_seed(7)
    again = identity_centres(1, [3, 4, 3])
    assert torch.equal(first[0], again[0])
    assert not torch.equal(identity_centres(1, [3, 4, 3])[0], first[0])


@pytest.mark.parametrize("widths", [[3], [3, 3]])
def test_too_few_layers_are_named(widths):
    with pytest.raises(ValueError, match=rf"widths has {len(widths)} entries.*at least two"):
        identity_centres(1, widths)


@pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
def test_operator():
    centres = identity_centres(2, [3, 8, 5], generator=torch.Generator().manual_seed(0))[:-1]
    operator = torch.ops.andfast.identity_last
    torch.library.opcheck(operator, (centres,))
    assert operator([centre[:0] for centre in centres]).shape == (0, 3, 8)
    for message, wrong in (
        ("centres must have the shape", [centres[0], centres[0]]),
        (r"centres\[0\] must be of type Float", [centres[0].double()]),
    ):
        with pytest.raises(RuntimeError, match=message):
            operator(wrong)
