"""Random networks that all compute the identity (Sec 3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from andfast.ops import dispatch
from andfast.utils.rng import draw_rows


def identity_centres(
    num_networks: int,
    widths: Sequence[int],
    dtype: torch.dtype = torch.float32,
    generator: torch.Generator | None = None,
    device: torch.device | str = "cpu",
) -> list[Tensor]:
    """Draw the centre taps of the convolutions of `num_networks` identity networks.

    All but the last are Xavier-initialised as 1x1 convolutions (std sqrt(2 / (in + out))); the last is the
    Moore-Penrose pseudoinverse of their product M. M is tall and has full column rank, so its pseudoinverse is
    (M^T M)^-1 M^T with a tiny inverse: no SVD, no host synchronisation, batched over the networks.

    Args:
        num_networks: N.
        widths: channels along the network, from the image's through the hidden ones back to the image's,
            one more than there are convolutions.
        dtype: the type the network computes in. The centres are returned rounded to it (except the last), and the
            pseudoinverse is that of the rounded product: 3 dB nearer to the identity in half types.
        generator: on `device`; None for torch's own.

    Returns:
        A float32 tensor of shape (N, out, in) for each convolution.
    """
    if len(widths) < 3:
        raise ValueError(f"widths has {len(widths)} entries; a network needs at least two convolutions, so three")
    centres = []
    for into, out in pairwise(widths[:-1]):
        shape = out, into
        centre = draw_rows(
            lambda count, shape=shape: torch.randn(count, *shape, generator=generator, device=device),
            num_networks,
            generator,
        )
        centres.append((centre * (2 / (into + out)) ** 0.5).to(dtype).float())
    return [*centres, identity_last(centres)]


def identity_last(centres: list[Tensor]) -> Tensor:
    """The pseudoinverse of the product of all `centres`.

    Equivalent to `identity_last_reference`.

    Args:
        centres: (N, out, in) float32 each; the first's `in` is the number of columns of the product.

    Returns:
        (N, in of the first, out of the last) float32, computed in float64.
    """
    count, _, into = centres[0].shape
    sizes = (count, into, *(centre.shape[1] for centre in centres), 1, 1, 1)
    return dispatch.select("identity_last", centres[0], sizes)(centres)


def identity_last_reference(centres: list[Tensor]) -> Tensor:
    """`identity_last` in plain PyTorch."""
    product = centres[0].double()
    for centre in centres[1:]:
        product = centre.double() @ product
    transposed = product.mT
    # inv_ex does not look at the result on the host, where inv would wait for the device to check for singularity.
    inverse = torch.linalg.inv_ex(transposed @ product).inverse
    return (inverse @ transposed).to(centres[0].dtype)


def _identity_last_compiled(centres: list[Tensor]) -> Tensor:
    """The C++ operator (csrc/cpu/identity.cpp, csrc/cuda/identity.cu: one launch)."""
    return torch.ops.andfast.identity_last(centres)


dispatch.register("identity_last", "reference", identity_last_reference)
# A few products of small matrices in float64, once a batch: Triton would not be faster than the library.
dispatch.register("identity_last", "triton", identity_last_reference, device="cuda", dtypes=(torch.float32,))
for _device in ("cpu", "cuda"):
    dispatch.register("identity_last", _device, _identity_last_compiled, device=_device, dtypes=(torch.float32,))

if "cpu" not in dispatch.unavailable:

    @torch.library.register_fake("andfast::identity_last")
    def _(centres: list[Tensor]) -> Tensor:
        return centres[0].new_empty(centres[0].shape[0], centres[0].shape[2], centres[-1].shape[1])
