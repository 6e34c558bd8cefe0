"""The whole degradation network on the Triton kernels."""

import network_banks
import pytest
import torch
from networks import check, make
from triton_reference import with_types

from andfast.ops import blur_pool, dispatch, noise, projected_step, use_backend
from andfast.ops.backends.triton.common import INTERPRET

OPERATIONS = ("degradation_block", "degradation_forward", "blur_pool", "gaussian_field", "projected_step")


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch):
    """Make the backend usable where its kernels are interpreted: on tensors of the CPU."""
    if INTERPRET.value:
        monkeypatch.delitem(dispatch.unavailable, "triton", raising=False)
        for operation in OPERATIONS:
            found = dispatch.operations[operation]["triton"]
            anywhere = dispatch.Implementation(found.function, None, found.dtypes)
            monkeypatch.setitem(dispatch.operations[operation], "triton", anywhere)


# N, images, size, scale, noise.
CASES = [
    (1, 2, (4, 6), 2, "map"),
    (2, 2, (4, 6), 2, "gaussian"),
    (2, 4, (4, 8), 4, "map"),
    (2, 2, (1, 5), 1, "gaussian"),
    (1, 2, (3, 4), 1, "map"),
]


@with_types("case", CASES)
def test_values_and_gradients(device, case, dtype):
    if dtype == torch.bfloat16 and INTERPRET.value:
        pytest.skip("images as small as the interpreter allows: one sign that rounding turns is most of the error")
    *sizes, noise = case
    network, *tensors = make(*sizes, dtype, noise=noise, blocks=2, channels=16)
    check("triton", network.to(device), *(tensor.to(device) for tensor in tensors))


@pytest.mark.parametrize("scale", [2, 1])
def test_opcheck(device, scale):
    network, hr, delta, _ = make(2, 2, (2, 4), scale, channels=4, blocks=1, noise="gaussian")
    arguments = (hr, network.theta_id, delta.requires_grad_(), network.noise_seed)
    arguments = [tensor.to(device) for tensor in arguments]
    operator = torch.ops.andfast.degradation_forward.default
    torch.library.opcheck(operator, (*arguments, scale, 4, 1, True, torch.float32, "triton", True))


# N, images, size, widths, noise.
BANKS = [(1, 2, (5, 7), (3, 16), "map"), (3, 3, (1, 9), (16, 5), "gaussian"), (2, 4, (9, 3), (16, 16), "map")]


@with_types("bank", BANKS)
def test_single_blocks(device, bank, dtype):
    *sizes, kind = bank
    network_banks.check("triton", network_banks.Bank(*sizes, dtype, kind, device))


def test_opcheck_of_a_single_block(device):
    bank = network_banks.Bank(2, 2, (4, 6), (3, 8), torch.float32, "gaussian", device)
    for tensor in bank.arguments[:5]:
        tensor.requires_grad_()
    network_banks.check_operator(bank, "triton")


def test_small_operators(device):
    """Registered operators, chosen by name, that compile without a graph break."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(2, 3, 4, 8, generator=generator).to(device).requires_grad_()
    rows = [torch.randn(2, 9, generator=generator).to(device) for _ in range(2)]
    seed, ones = torch.tensor(5, device=device), torch.ones(9, device=device)
    calls = (
        lambda: blur_pool.blur_pool(image, 4),
        lambda: blur_pool.blur_pool(image.contiguous(memory_format=torch.channels_last), 4),
        lambda: noise.gaussian_field(seed, 1, 2, (3, 5)),
        lambda: projected_step(*rows, ones, 0.3, 0.5),
    )
    for call in calls:
        with use_backend("reference"):
            expected = call()
        with use_backend("triton"):
            torch.testing.assert_close(call(), expected, atol=3e-6, rtol=1e-6)
            torch.testing.assert_close(torch.compile(call, backend="aot_eager", fullgraph=True)(), expected)
    with use_backend("triton"):
        (grad,) = torch.autograd.grad(blur_pool.blur_pool(image, 4).sum(), image)
    torch.testing.assert_close(grad, torch.autograd.grad(blur_pool.blur_pool_reference(image, 4).sum(), image)[0])
