import pytest
import torch
from networks import check, make, run
from torch import Tensor

from andfast.ops import degradation_forward, dispatch, use_backend
from andfast.ops.degradation_forward import degradation_forward_reference

needs_cpu = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))


HALF = torch.bfloat16


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize("noise", ["map", "gaussian"])
@pytest.mark.parametrize(
    ("networks", "images", "scale"), [(1, 1, 4), (1, 3, 4), (3, 6, 4), (3, 3, 4), (1, 3, 1), (3, 6, 1)]
)
def test_values_and_gradients(backend, dtype, noise, networks, images, scale):
    check(backend, *make(networks, images, scale=scale, dtype=dtype, noise=noise))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, HALF])
@pytest.mark.parametrize(
    ("size", "scale", "options"),
    [
        ((4, 4), 4, {}),
        ((2, 2), 2, {}),
        ((3, 9), 3, {}),
        ((6, 10), 2, {"blocks": 1}),
        ((9, 6), 3, {"channels": 5}),
        ((10, 14), 2, {"channels": 24, "blocks": 2}),
        ((8, 64), 4, {"channels": 64, "blocks": 2}),
        ((8, 16), 8, {}),
        ((1, 1), 1, {}),
        ((7, 5), 1, {"blocks": 1}),
        ((9, 1), 1, {"channels": 24}),
    ],
)
def test_sizes(backend, dtype, size, scale, options):
    network, hr, delta, lr_grad = make(1, 2, size, scale, dtype, **{"blocks": 2, **options})
    check(backend, network, hr, delta, lr_grad)


@pytest.mark.parametrize("scale", [4, 1])
def test_identity_is_the_pooled_image(backend, scale):
    network, hr, _, _ = make(2, 4, scale=scale)
    with use_backend(backend):
        lr = degradation_forward(
            hr, network.theta_id, torch.zeros_like(network.delta), network.noise_seed, network.layout, torch.float32
        )
    torch.testing.assert_close(lr, network.clean(hr), atol=1e-5, rtol=0)


@pytest.mark.parametrize("scale", [4, 1])
def test_layouts_and_types_of_the_images(backend, scale):
    network, hr, delta, lr_grad = make(2, 2, scale=scale)
    expected = run(backend, network, hr, delta, lr_grad, torch.float32)
    wide = torch.zeros(2, 3, 12, 41)[..., ::2][..., :20].copy_(hr)
    for same in (hr.contiguous(memory_format=torch.channels_last), wide):
        for found, wanted in zip(run(backend, network, same, delta, lr_grad, torch.float32), expected, strict=True):
            torch.testing.assert_close(found, wanted)
    one = hr[:1].expand(2, -1, -1, -1)
    found = run(backend, network, one, delta, lr_grad, torch.float32)
    for part, wanted in zip(found, run(backend, network, one.clone(), delta, lr_grad, torch.float32), strict=True):
        assert torch.equal(part, wanted)
    assert run(backend, network, hr.double(), delta, lr_grad, torch.float32)[2].dtype == torch.float64


def test_gradient_of_a_plain_sum(backend):
    """Its strides are all zero."""
    network, hr, delta, _ = make()
    delta.requires_grad_()
    arguments = (network.noise_seed, network.layout, torch.float32)
    with use_backend(backend):
        (found,) = torch.autograd.grad(degradation_forward(hr, network.theta_id, delta, *arguments).sum(), delta)
    reference = degradation_forward_reference(hr, network.theta_id, delta, *arguments).sum()
    torch.testing.assert_close(found, torch.autograd.grad(reference, delta)[0], atol=1e-3, rtol=1e-3)


def test_nothing_is_computed_that_nobody_asked_for(backend, implementation, monkeypatch):
    network, hr, delta, _ = make()
    kernels = type(dispatch.load(implementation))
    calls = []
    plain = kernels.conv_input_grad
    monkeypatch.setattr(kernels, "conv_input_grad", lambda *args: calls.append(1) or plain(*args))
    for wanted, count in ((False, 1), (True, 2)):  # the first is that before the pooling
        calls.clear()
        images = hr.clone().requires_grad_(wanted)
        with use_backend(backend):
            lr = degradation_forward(
                images, network.theta_id, delta.requires_grad_(), network.noise_seed, network.layout, torch.float32
            )
            lr.sum().backward()
        assert len(calls) == count
        assert (images.grad is not None) == wanted


@pytest.mark.parametrize(("networks", "scale"), [(1, 4), (2, 4), (2, 1)])
def test_without_gradients_nothing_is_kept(backend, implementation, networks, scale):
    network, hr, delta, _ = make(networks, scale=scale)
    sizes = (scale, 64, 5, False, torch.float32, implementation)
    operator = torch.ops.andfast.degradation_forward
    kept = operator(hr, network.theta_id, delta, network.noise_seed, *sizes, True)
    (lr,) = operator(hr, network.theta_id, delta, network.noise_seed, *sizes, False)
    assert len(kept) > 1
    assert torch.equal(lr, kept[0])
    with use_backend(backend), torch.no_grad():
        arguments = (network.theta_id, delta.requires_grad_(), network.noise_seed, network.layout, torch.float32)
        assert torch.equal(degradation_forward(hr, *arguments), lr)


def test_equal_calls_give_equal_bits(backend):
    arguments = make(2, 4, dtype=HALF, noise="gaussian")
    first, second = (run(backend, *arguments, HALF) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


@pytest.mark.parametrize(("scale", "size"), [(4, (3, 5)), (1, (12, 20))])
def test_no_images(backend, scale, size):
    network, _, delta, _ = make(scale=scale)
    with use_backend(backend):
        lr = degradation_forward(
            torch.zeros(0, 3, 12, 20), network.theta_id, delta, network.noise_seed, network.layout, torch.float32
        )
    assert lr.shape == (0, 3, *size)


@pytest.mark.parametrize("noise", ["map", "gaussian"])
@pytest.mark.parametrize("scale", [2, 1])
def test_gradcheck_of_the_reference(noise, scale):
    network, hr, delta, _ = make(2, 2, (4, 6), scale, channels=4, blocks=1, noise=noise)
    network.layout.slope[1].view(delta)[:] = 0.2
    others = (network.noise_seed, network.layout, torch.float64)
    inputs = (hr.double().requires_grad_(), delta.double().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda hr, delta: degradation_forward_reference(hr, network.theta_id.double(), delta, *others), inputs
    )


@needs_cpu
@pytest.mark.parametrize("scale", [2, 1])
@pytest.mark.parametrize(("networks", "noise", "needs_hr"), [(1, "map", True), (2, "gaussian", False)])
def test_opcheck(networks, noise, needs_hr, scale):
    network, hr, delta, _ = make(networks, 2, (4, 6), scale, channels=8, blocks=1, noise=noise)
    arguments = (
        hr.requires_grad_(needs_hr),
        network.theta_id,
        delta.requires_grad_(),
        network.noise_seed,
        *(scale, 8, 1, noise == "gaussian", torch.float32, "winograd"),
    )
    for keep in (True, False):
        given = arguments if keep else [tensor.detach() if torch.is_tensor(tensor) else tensor for tensor in arguments]
        torch.library.opcheck(torch.ops.andfast.degradation_forward.default, (*given, keep))


@pytest.mark.parametrize(("networks", "scale"), [(1, 4), (2, 4), (2, 1)])
def test_compiles_without_a_graph_break(backend, networks, scale):
    network, hr, delta, lr_grad = make(networks, 2, (8, 8), scale, channels=8, blocks=1)

    def loss(delta: Tensor) -> Tensor:
        lr = degradation_forward(hr, network.theta_id, delta, network.noise_seed, network.layout, torch.float32)
        return (lr * lr_grad).sum()

    with use_backend(backend):
        expected = torch.autograd.grad(loss(delta.requires_grad_()), delta)[0]
        compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
        found = torch.autograd.grad(compiled(delta), delta)[0]
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"hr": torch.zeros(2, 3, 12, 16)}, ValueError, r"hr has shape \(2, 3, 12, 16\); .* \(B, 3, 12, 20\)"),
        ({"hr": torch.zeros(2, 3, 12, 20).byte()}, TypeError, "hr is torch.uint8"),
        ({"hr": torch.zeros(3, 3, 12, 20)}, ValueError, "the batch size of hr, 3, must be a multiple .*, 2"),
        ({"theta_id": torch.zeros(3)}, ValueError, r"theta_id has shape \(3,\); it must be \(N, \d+\)"),
        ({"delta": torch.zeros(2, 3)}, ValueError, r"delta has shape \(2, 3\); it must be \(2, \d+\)"),
        ({"noise_seed": torch.zeros(3).long()}, ValueError, r"noise_seed has shape \(3,\); it must be \(2,\)"),
        ({"noise_seed": torch.zeros(2)}, TypeError, "noise_seed is torch.float32; it must be torch.int64"),
        ({"noise_seed": torch.zeros(2, device="meta").long()}, ValueError, "noise_seed is on meta"),
    ],
)
def test_wrong_arguments(change, error, message):
    network, hr, delta, _ = make(2, 4)
    arguments = {"hr": hr, "theta_id": network.theta_id, "delta": delta, "noise_seed": network.noise_seed, **change}
    with pytest.raises(error, match=message):
        degradation_forward(**arguments, layout=network.layout, dtype=torch.float32)


@needs_cpu
def test_backends_by_type():
    network, hr, delta, _ = make()
    with use_backend("cpu"), pytest.raises(ValueError, match=r"takes torch.float32 or torch.bfloat16 tensors"):
        degradation_forward(hr, network.theta_id, delta, network.noise_seed, network.layout, torch.float16)
    chosen = {
        torch.float32: "winograd",
        torch.bfloat16: "onednn",
        torch.float16: "reference",
        torch.float64: "reference",
    }
    for dtype, implementation in chosen.items():
        assert dispatch.candidates("degradation_forward", hr.device, dtype)[0] == implementation
