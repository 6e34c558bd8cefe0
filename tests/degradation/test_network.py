"""The bank of degradation networks, against the exact pooling and a whole network in NumPy and SciPy."""

import re

import numpy as np
import pytest
import torch
from adversaries import seeded
from scipy import ndimage
from torch import Tensor

from andfast.data.photographs import held_out_photographs
from andfast.degradation.network import SCALES, DegradationNetwork
from andfast.ops.noise import gaussian_field

NOISES = ("map", "gaussian")

# One-dimensional moments; a kernel's basis holds their products.
MOMENTS = np.array([[1, 1, 1], [-1, 0, 1], [1, -2, 1]]) / np.sqrt([[3], [2], [6]])
BASIS = np.stack(
    [
        np.kron(MOMENTS[y], MOMENTS[x])
        for y, x in [(0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0), (1, 2), (2, 1), (2, 2)]
    ]
)


def photographs(count: int, height: int, width: int) -> Tensor:
    """(count, 3, height, width) crops of a real photograph, float32 in [0, 1]."""
    image = torch.from_numpy(dict(held_out_photographs())["astronaut"]).permute(2, 0, 1) / 255
    corners = [(50 + 60 * (i // 3), 150 + 80 * (i % 3)) for i in range(count)]
    return torch.stack([image[:, y : y + height, x : x + width] for y, x in corners])


def random_delta(network: DegradationNetwork, seed: int = 1) -> Tensor:
    """A visible deviation of every parameter that leaves most LR pixels inside [0, 1]; float64."""
    delta = torch.randn(network.theta_id.shape, generator=seeded(seed), dtype=torch.float64)
    first_noise, first_slope = network.layout.noise[0].start, network.layout.slope[0].start
    delta[:, :first_noise] *= 0.005
    delta[:, first_noise:first_slope] *= 0.005
    delta[:, first_slope:] *= 0.05
    return delta


def pool(image: np.ndarray, scale: int) -> np.ndarray:
    """The exact pooling in float64: box_s * [1, 2, 1] / 4 in both directions, reflected, every `scale`-th pixel.

    At scale 1 there is none.
    """
    if scale == 1:
        return image.astype(np.float64)
    taps = np.convolve(np.full(scale, 1 / scale), [0.25, 0.5, 0.25])
    padded = np.pad(image.astype(np.float64), [(0, 0)] * (image.ndim - 2) + [(1, 1)] * 2, mode="reflect")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (len(taps), len(taps)), axis=(-2, -1))
    return np.einsum("...yx,y,x->...", windows[..., ::scale, ::scale, :, :], taps, taps)


def convolve(x: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """(B, in, H, W) and (out, in, 3, 3) -> (B, out, H, W), the border replicated."""
    return np.stack(
        [
            [sum(ndimage.correlate(p, k, mode="nearest") for p, k in zip(x_b, row, strict=True)) for row in kernels]
            for x_b in x
        ]
    )


def degrade(
    theta: np.ndarray, hr: np.ndarray, scale: int, channels: int, blocks: int, noise: str, noise_seed: Tensor
) -> np.ndarray:
    """Sec 3.1 for one network in float64: `theta` (P,) with convolutions as taps, `hr` (B, 3, H, W)."""
    height, width = hr.shape[2:]
    sizes = [(height, width)] * blocks + [(height // scale, width // scale)] * blocks
    rest = theta

    def take(*shape: int) -> np.ndarray:
        nonlocal rest
        values, rest = np.split(rest, [int(np.prod(shape))])
        return values.reshape(shape)

    widths = [3] + [channels] * (2 * blocks) + [3]
    kernels = [take(widths[i + 1], widths[i], 3, 3) for i in range(2 * blocks + 1)]
    noises = [take(1, 1, *size) if noise == "map" else take(1, channels, 1, 1) for size in sizes]
    slopes = take(2 * blocks)
    assert rest.size == 0

    x = hr.astype(np.float64)
    for layer in range(2 * blocks):
        if layer == blocks:
            x = pool(x, scale)
        x = convolve(x, kernels[layer])
        x = np.where(x < 0, slopes[layer] * x, x)
        field = 1.0
        if noise == "gaussian":
            field = gaussian_field(noise_seed, layer, len(hr), sizes[layer]).double().numpy()
        x = x + noises[layer] * field
    return np.clip(convolve(x, kernels[-1]), 0, 1)


def taps_of(network: DegradationNetwork, delta: Tensor) -> np.ndarray:
    """theta in float64: the identity plus the deviation, whose convolution columns are moments."""
    theta = network.theta_id.double().numpy().copy()
    stop = network.layout.noise[0].start
    moments = delta.double().numpy()
    theta[:, :stop] += (moments[:, :stop].reshape(len(theta), -1, 9) @ BASIS).reshape(len(theta), -1)
    theta[:, stop:] += moments[:, stop:]
    return theta


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("num_networks", [1, 2, 4])
@pytest.mark.parametrize("scale", SCALES)
def test_the_identity_is_the_exact_pooling(scale, num_networks, noise):
    hr = photographs(4, 12 * scale, 9 * scale)
    network = DegradationNetwork(scale, num_networks, channels=16, noise=noise)
    network.reset_identity((12 * scale, 9 * scale), seeded())
    lr = network(hr)
    assert lr.dtype == torch.float32
    expected = pool(hr.numpy(), scale)
    np.testing.assert_allclose(lr.numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(network.clean(hr).numpy(), expected, rtol=0, atol=1e-6)


# The worst of eight draws, over several seeds: 70.6 to 71.6 dB and 51.8 to 53.1 dB. A last centre that knows nothing of
# the rounding of the others gets 67.6 to 68.4 dB and 47.4 to 50.4 dB.
@pytest.mark.parametrize(("dtype", "least"), [(torch.float16, 70.5), (torch.bfloat16, 51.5)])
@pytest.mark.parametrize("scale", [2, 4])
def test_the_identity_in_half_types(dtype, least, scale):
    hr = photographs(1, 96, 96)
    expected = pool(hr.numpy(), scale)
    network, generator = DegradationNetwork(scale, dtype=dtype), seeded()
    for _ in range(8):
        network.reset_identity((96, 96), generator)
        lr = network(hr)
        assert lr.dtype == torch.float32
        assert -10 * np.log10(np.mean((lr.double().numpy() - expected) ** 2)) >= least


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("delta_too", [False, True])
def test_a_flat_image_stays_flat_to_the_border(scale, delta_too):
    """No dark frame, neither at the identity nor under a deviation of the convolutions."""
    network = DegradationNetwork(scale, channels=8)
    network.reset_identity((6 * scale, 5 * scale), seeded())
    delta = random_delta(network).float() * (0.3 if delta_too else 0)
    delta[:, network.layout.noise[0].start : network.layout.slope[0].start] = 0
    colour = torch.tensor([0.4, 0.5, 0.6]).view(1, 3, 1, 1)
    lr = network(colour.expand(1, 3, 6 * scale, 5 * scale), delta)
    np.testing.assert_allclose(lr.numpy(), lr[:, :, 2:3, 2:3].expand_as(lr).numpy(), atol=1e-5)
    if delta_too:
        assert (lr[0, :, 0, 0] - colour.flatten()).abs().max() > 1e-3
    else:
        np.testing.assert_allclose(lr.numpy(), colour.expand_as(lr).numpy(), atol=1e-5)


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("scale", "blocks"), [(2, 2), (3, 1), (4, 1), (8, 1), (1, 2)])
def test_the_whole_network_is_that_in_numpy(scale, blocks, noise):
    size, count = (4 * scale, 5 * scale), 2
    hr = 0.2 + 0.6 * photographs(2 * count, *size)
    networks = {
        dtype: DegradationNetwork(scale, count, channels=8, blocks=blocks, noise=noise, dtype=dtype)
        for dtype in (torch.float64, torch.float32)
    }
    for network in networks.values():
        network.reset_identity(size, seeded())
    network = networks[torch.float64]
    delta = random_delta(network)
    theta = taps_of(network, delta)
    expected = np.concatenate(
        [
            degrade(theta[n], hr[2 * n : 2 * n + 2].numpy(), scale, 8, blocks, noise, network.noise_seed[n])
            for n in range(count)
        ]
    )
    exact = network(hr.double(), delta)
    assert exact.dtype == torch.float64
    np.testing.assert_allclose(exact.numpy(), expected, rtol=0, atol=1e-12)

    network = networks[torch.float32]
    np.testing.assert_allclose(network(hr, delta.float()).numpy(), expected, rtol=0, atol=1e-5)
    # `self.delta` is the default, and `theta` is the sum, convolutions as taps.
    network.delta = delta.float()
    np.testing.assert_allclose(network(hr).numpy(), expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(network.theta.numpy(), theta, rtol=0, atol=1e-6)

    # The comparison says something: the deviation is far larger than the tolerance, and most pixels not clamped.
    assert np.abs(expected - pool(hr.numpy(), scale)).mean() > 0.01
    assert ((expected > 0) & (expected < 1)).mean() > 0.8


@pytest.mark.parametrize("noise", NOISES)
def test_gradients_of_the_deviation(noise):
    network = DegradationNetwork(2, 2, channels=4, blocks=1, noise=noise, dtype=torch.float64)
    network.reset_identity((4, 6), seeded())
    hr = 0.3 + 0.4 * torch.rand(2, 3, 4, 6, generator=seeded(2), dtype=torch.float64)
    # Enough that no LeakyReLU is linear, little enough that no pixel is clamped.
    delta = 0.1 * random_delta(network)
    lr = network(hr, delta)
    assert ((lr > 0.1) & (lr < 0.9)).all()
    assert torch.autograd.gradcheck(lambda moved: network(hr, moved), delta.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("noise", NOISES)
def test_the_gradient_does_not_enter_other_networks(noise):
    network = DegradationNetwork(2, 3, channels=4, blocks=1, noise=noise)
    network.reset_identity((4, 4), seeded())
    delta = torch.zeros_like(network.theta_id, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(photographs(6, 4, 4), delta)[2:4].sum(), delta)
    assert gradient[1].any()
    assert not gradient[[0, 2]].any()


def test_clamped_pixels_give_no_gradient():
    network = DegradationNetwork(2, channels=4, blocks=1)
    network.reset_identity((4, 4), seeded())
    delta = torch.zeros_like(network.theta_id, requires_grad=True)
    lr = network(torch.full((1, 3, 4, 4), 1.5), delta)
    assert (lr == 1).all()
    assert not torch.autograd.grad(lr.sum(), delta)[0].any()


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bank_is_its_networks_one_by_one(noise, dtype):
    size, count, images = (8, 12), 3, 2
    bank = DegradationNetwork(4, count, channels=8, blocks=2, noise=noise, dtype=dtype)
    bank.reset_identity(size, seeded())
    delta, hr = random_delta(bank).float(), photographs(count * images, *size)
    together = bank(hr, delta)
    single = DegradationNetwork(4, 1, channels=8, blocks=2, noise=noise, dtype=dtype)
    single.reset_identity(size, seeded(5))
    for n in range(count):
        single.theta_id, single.delta = bank.theta_id[n : n + 1], delta[n : n + 1]
        single.noise_seed = bank.noise_seed[n : n + 1]
        mine = slice(n * images, (n + 1) * images)
        assert torch.equal(single(hr[mine]), together[mine])


@pytest.mark.parametrize("noise", NOISES)
def test_seeds_reproduce_and_networks_differ(noise):
    def draw(seed: int) -> DegradationNetwork:
        network = DegradationNetwork(2, 3, channels=8, blocks=1, noise=noise)
        network.reset_identity((8, 8), seeded(seed))
        return network

    first, again, other = draw(0), draw(0), draw(1)
    assert torch.equal(first.theta_id, again.theta_id)
    assert torch.equal(first.noise_seed, again.noise_seed)
    assert not torch.equal(first.theta_id, other.theta_id)
    assert not torch.equal(first.noise_seed, other.noise_seed)
    assert len(set(first.noise_seed.tolist())) == 3
    assert (first.noise_seed >= 0).all()
    for row in range(3):
        assert not torch.equal(first.theta_id[row], first.theta_id[(row + 1) % 3])
    # The same deviation of other networks is another degradation: why the draws matter (Sec 3.2).
    hr = photographs(1, 8, 8).expand(3, -1, -1, -1)
    lr = first(hr, random_delta(first)[:1].float().expand(3, -1))
    assert (lr[0] - lr[1]).abs().max() > 0.01
    assert (lr[1] - lr[2]).abs().max() > 0.01


def test_reset_starts_at_the_identity_again():
    network = DegradationNetwork(2, channels=8, blocks=1)
    network.reset_identity((8, 8), seeded())
    network.delta = random_delta(network).float()
    before = network.theta_id.clone()
    network.reset_identity((4, 8), seeded(3))
    assert not network.delta.any()
    assert network.delta.shape == network.theta_id.shape == (1, network.layout.size)
    assert network.theta_id.shape != before.shape
    torch.testing.assert_close(network.theta, network.theta_id, rtol=0, atol=0)
    hr = photographs(1, 4, 8)
    np.testing.assert_allclose(network(hr).numpy(), pool(hr.numpy(), 2), atol=1e-5)


def test_gaussian_noise_is_fixed_until_the_next_reset_and_its_own_for_each_image():
    network = DegradationNetwork(2, channels=8, blocks=1, noise="gaussian")
    network.reset_identity((8, 8), seeded())
    hr = photographs(1, 8, 8).expand(2, -1, -1, -1)
    delta = torch.zeros_like(network.theta_id)
    network.layout.noise[0].view(delta).fill_(0.1)
    lr = network(hr, delta)
    assert torch.equal(network(hr, delta), lr)
    assert (lr[0] - lr[1]).abs().max() > 0.01


def test_theta_is_no_part_of_a_checkpoint_and_nothing_is_learned():
    network = DegradationNetwork(2, channels=4, blocks=1)
    network.reset_identity((4, 4))
    assert not network.state_dict()
    assert not list(network.parameters())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0}, "scale is 0"),
        ({"scale": 5}, "scale is 5; it must be one of 1, 2, 3, 4, 8"),
        ({"noise": "poisson"}, "noise is 'poisson'"),
        ({"num_networks": 0}, "num_networks is 0; it must be at least 1"),
        ({"channels": 2}, "channels is 2; it must be at least 3"),
        ({"blocks": 0}, "blocks is 0; it must be at least 1"),
        ({"dtype": torch.int32}, "dtype is torch.int32"),
    ],
)
def test_wrong_settings_are_named(arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        DegradationNetwork(**arguments)


@pytest.mark.parametrize("size", [(9, 8), (8, 10), (0, 8), (8, 0)])
def test_image_sizes_that_do_not_divide_are_named(size):
    with pytest.raises(ValueError, match=rf"image size is {size[0]} x {size[1]}.*multiples of the scale, 4"):
        DegradationNetwork(4).reset_identity(size)


def test_a_network_without_parameters_says_how_to_get_them():
    network = DegradationNetwork(2, channels=4, blocks=1)
    with pytest.raises(RuntimeError, match="call reset_identity"):
        network(torch.zeros(1, 3, 4, 4))
    with pytest.raises(RuntimeError, match="call reset_identity"):
        network.theta  # noqa: B018


def test_images_of_whole_numbers_are_refused():
    network = DegradationNetwork(2, channels=4, blocks=1)
    network.reset_identity((4, 4))
    with pytest.raises(TypeError, match=r"hr is torch\.uint8"):
        network(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_a_reset_leaves_what_it_replaces():
    network = DegradationNetwork(2, channels=4, blocks=1, noise="gaussian")
    network.reset_identity((4, 4))
    kept = {name: getattr(network, name) for name in ("theta_id", "delta", "noise_seed")}
    copies = {name: tensor.clone() for name, tensor in kept.items()}
    network.reset_identity((4, 4))
    assert all(torch.equal(kept[name], copies[name]) for name in kept)
    assert not torch.equal(network.noise_seed, kept["noise_seed"])


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 8, 6), "hr has shape (2, 3, 8, 6); after reset_identity it must be (B, 3, 8, 8)"),
        ((2, 1, 8, 8), "hr has shape (2, 1, 8, 8)"),
        ((3, 8, 8), "hr has shape (3, 8, 8)"),
        ((3, 3, 8, 8), "the batch size of hr, 3, must be a multiple of num_networks, 2"),
        ((0, 3, 8, 8), "the batch size of hr, 0, must be"),
    ],
)
def test_wrong_images_are_named(shape, message):
    network = DegradationNetwork(2, 2, channels=4, blocks=1)
    network.reset_identity((8, 8))
    with pytest.raises(ValueError, match=re.escape(message)):
        network(torch.zeros(shape))


def test_a_wrong_deviation_is_named():
    network = DegradationNetwork(2, 2, channels=4, blocks=1)
    network.reset_identity((8, 8))
    columns = network.layout.size
    with pytest.raises(ValueError, match=re.escape(f"delta has shape (1, {columns}); it must be (2, {columns})")):
        network(torch.zeros(2, 3, 8, 8), network.delta[:1])
