"""The operators around a convolution against plain PyTorch in float64.

The CUDA operators on a GPU, their sources on the host, the CPU's operators, and their plain versions, in float32:
`test_library.py` judges how these round in half types.
"""

import cuda_on_host
import pytest
import torch
import torch.nn.functional as F
from generator_checks import check_kernel, check_threads, nchw, nhwc, unpack_bits
from torch import Tensor

from andfast.ops import dispatch, use_backend
from andfast.ops.backends import epilogues
from andfast.ops.blur_pool import blur_pool
from andfast.ops.identity_init import identity_centres
from andfast.ops.noise import gaussian_field
from andfast.ops.projected_step import projected_step_reference

TYPES = (torch.float32, torch.float16, torch.bfloat16)
# One rounding to the type, and a little for the float32 arithmetic before it.
TOLERANCE = {
    torch.float32: {"rtol": 2e-6, "atol": 2e-6},
    torch.float16: {"rtol": 2**-11 + 1e-5, "atol": 2e-6},
    torch.bfloat16: {"rtol": 2**-8 + 1e-5, "atol": 2e-6},
}
LAYER = 3

# (networks, images, height, width, channels): channels that fill their Vec8s or not, one and several tiles of
# pixels, images of one pixel, and so many that one block of threads sums over several.
SHAPES = (
    (1, 2, 5, 7, 3),
    (3, 6, 4, 9, 5),
    (2, 2, 13, 11, 64),
    (1, 3, 3, 43, 72),
    (2, 4, 1, 3, 8),
    (1, 1, 33, 34, 8),
    (1, 1031, 1, 1, 12),
)
POOL_SHAPES = ((1, 2, 5, 3, 3), (3, 6, 2, 5, 5), (2, 2, 6, 9, 64), (1, 1, 1, 1, 8), (1, 2, 9, 1, 16))  # after pooling

has_compiler = pytest.mark.skipif(cuda_on_host.compiler() is None, reason="there is no C++ compiler")
has_extension = pytest.mark.skipif("cpu" in dispatch.unavailable, reason=dispatch.unavailable.get("cpu", ""))
has_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("cuda", marks=has_gpu),
        pytest.param("host_cpu", marks=has_compiler),
        pytest.param("cpu", marks=has_extension),
        "plain",
    ],
)
def build(request, tmp_path_factory):
    if request.param == "host_cpu":
        cuda_on_host.load(tmp_path_factory.mktemp("cuda_on_host"))
    return request.param


@pytest.fixture
def device(build):
    return "cuda" if build == "cuda" else "cpu"


class Plain:
    """The plain versions; the test of an operator without one is skipped."""

    def __getattr__(self, name: str):
        if not hasattr(epilogues, name):
            pytest.skip(f"{name} has a reference of its own")
        return getattr(epilogues, name)


@pytest.fixture
def ops(build, request):
    if build == "cuda" and not torch._C._dispatch_has_kernel_for_dispatch_key("andfast::block_epilogue", "CUDA"):
        pytest.fail("there is a GPU, but the extension was built without CUDA")
    if build == "cpu" and request.node.callspec.params.get("dtype") == torch.float16:
        pytest.skip("the CPU has no operators for float16")
    if build == "plain" and request.node.callspec.params.get("dtype", torch.float32) != torch.float32:
        pytest.skip("rounded after each operation")
    torch.use_deterministic_algorithms(True)  # which fills new tensors with NaN
    yield {"host_cpu": torch.ops.andfast_on_host, "plain": Plain()}.get(build, torch.ops.andfast)
    torch.use_deterministic_algorithms(False)


class Case:
    """Inputs of a block, on the device, and the same in float64."""

    def __init__(self, shape, dtype, gaussian: bool, device: str, two: bool = True):
        self.networks, self.images, self.height, self.width, self.channels = shape
        self.dtype, self.device, self.gaussian = dtype, device, gaussian
        self.generator = torch.Generator().manual_seed(sum(shape))
        size = (self.images, self.height, self.width, self.channels)
        self.a = self.draw(*size).to(dtype)
        self.b = (self.draw(*size) / 8).to(dtype) if two else None
        self.slope_minus_one = self.draw(self.networks) * 0.2
        self.seed = torch.arange(self.networks) * 2**33 + 5 if gaussian else None
        noise = (self.networks, self.channels) if gaussian else (self.networks, self.height, self.width)
        self.noise = self.draw(*noise) * 0.1
        for name in ("a", "b", "slope_minus_one", "seed", "noise"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.to(device))

    def draw(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator)

    def spread(self, values: Tensor) -> Tensor:
        """(N, ...) -> (B, ...)"""
        return values.double().cpu().repeat_interleave(self.images // self.networks, 0)

    @property
    def slope(self) -> Tensor:
        return self.spread(self.slope_minus_one)[:, None, None, None]

    @property
    def field(self) -> Tensor:
        """(B, H, W, 1), as in the noise = strength * field."""
        group, size = self.images // self.networks, (self.height, self.width)
        with use_backend("reference"):
            fields = [gaussian_field(seed, LAYER, group, size) for seed in self.seed.cpu()]
        return torch.cat(fields).double().permute(0, 2, 3, 1)

    @property
    def added(self) -> Tensor:
        if self.gaussian:
            return self.spread(self.noise)[:, None, None] * self.field
        return self.spread(self.noise)[..., None]

    @property
    def z(self) -> Tensor:
        a = self.a.float().cpu()
        return (a if self.b is None else a + self.b.float().cpu()).double()

    @property
    def y(self) -> Tensor:
        return self.z + self.slope * self.z.clamp(max=0) + self.added

    @property
    def arguments(self) -> tuple:
        return self.a, self.b, self.slope_minus_one, self.noise, self.seed, LAYER


def add_border(image: Tensor, border: int) -> Tensor:
    return nhwc(F.pad(nchw(image), (border,) * 4, mode="replicate"))


def through(function, size, grad: Tensor) -> Tensor:
    """The gradient of a linear function of a float64 image of this size."""
    image = torch.zeros(size, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(function(image), image, grad.double().cpu())[0]


def pooled(image: Tensor, scale: int) -> Tensor:
    with use_backend("reference"):
        return nhwc(blur_pool(nchw(image), scale))


def close(actual: Tensor, expected: Tensor, dtype=torch.float32) -> None:
    torch.testing.assert_close(actual.double().cpu(), expected.double(), **TOLERANCE[dtype])


def close_sums(actual: Tensor, expected: Tensor, sizes: Tensor) -> None:
    """Sums, whose rounding goes with the size of what is summed."""
    assert actual.dtype == torch.float32
    assert ((actual.double().cpu() - expected).abs() <= 2e-6 * sizes + 1e-6).all()


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", [0, 1])
def test_block_epilogue(ops, device, shape, dtype, gaussian, border):
    case = Case(shape, dtype, gaussian, device, two=border == 1)
    y, sign_mask = ops.block_epilogue(*case.arguments, border)
    assert y.dtype == dtype
    close(y, add_border(case.y, border), dtype)
    assert torch.equal(unpack_bits(sign_mask.cpu(), case.channels), case.z < 0)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("border", [0, 1])
def test_block_epilogue_grad(ops, device, shape, dtype, gaussian, border):
    case = Case(shape, dtype, gaussian, device)
    y, sign_mask = ops.block_epilogue(*case.arguments, border)
    dy = case.draw(*y.shape).to(device, dtype)
    arguments = (dy, y, sign_mask, *case.arguments[2:], border)
    dz, dslope, dnoise = ops.block_epilogue_grad(*arguments)

    folded = through(lambda image: add_border(image, border), case.z.shape, dy)
    negative = case.z < 0
    assert dz.dtype == dtype
    close(dz, folded * torch.where(negative, 1 + case.slope, 1), dtype)

    inner = y.double().cpu()[:, border : border + case.height, border : border + case.width]
    slopes = 1 + case.slope
    inverse = torch.where(slopes.abs() < 1 / 1024, slopes.sign() * 1024, 1 / slopes)
    terms = torch.where(negative, folded * (inner - case.added) * inverse, 0).reshape(case.networks, -1)
    close_sums(dslope, terms.sum(1), terms.abs().sum(1))

    if gaussian:
        terms = (folded * case.field).reshape(case.networks, -1, case.channels)
    else:
        terms = folded.unflatten(0, (case.networks, -1)).permute(0, 1, 4, 2, 3).flatten(1, 2)
    close_sums(dnoise, terms.sum(1), terms.abs().sum(1))
    for first, second in zip((dz, dslope, dnoise), ops.block_epilogue_grad(*arguments), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("slope_minus_one", [-0.98, -1.01, -0.995])
def test_gradient_of_a_small_slope(ops, device, dtype, slope_minus_one):
    case = Case((1, 2, 40, 40, 64), dtype, False, device)
    case.slope_minus_one.fill_(slope_minus_one)
    y, sign_mask = ops.block_epilogue(*case.arguments, 0)
    _, dslope, _ = ops.block_epilogue_grad(torch.ones_like(y), y, sign_mask, *case.arguments[2:], 0)
    exact = case.z.clamp(max=0).sum().item()
    assert dslope.item() == pytest.approx(exact, rel=1e-5 if dtype == torch.float32 else 1e-2)


def test_gradient_of_a_slope_near_zero(ops, device):
    case = Case((4, 4, 4, 4, 8), torch.float32, False, device)
    slopes = torch.tensor([-1.0, -0.99, -1.0005, -0.9995])
    case.slope_minus_one.copy_(slopes)
    y, sign_mask = ops.block_epilogue(*case.arguments, 0)
    dz, dslope, dnoise = ops.block_epilogue_grad(torch.ones_like(y), y, sign_mask, *case.arguments[2:], 0)
    negative = case.z.clamp(max=0).flatten(1).sum(1)
    expected = negative * torch.tensor([0, 1, 0.0005 * 1024, 0.0005 * 1024])
    torch.testing.assert_close(dslope.double().cpu(), expected.double(), rtol=1e-3, atol=1e-3)
    assert torch.equal(dz.cpu(), torch.where(case.z < 0, 1 + slopes[:, None, None, None], 1.0))
    assert dnoise.isfinite().all()


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_nonfinite_values_stay_so_and_touch_no_others(ops, device, value):
    case = Case((1, 1, 3, 3, 4), torch.bfloat16, False, device)
    case.a[0, 1, 1, 2] = value
    y, _ = ops.block_epilogue(*case.arguments, 0)
    assert not y[0, 1, 1, 2].isfinite()
    assert y.isfinite().sum() == y.numel() - 1


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("gaussian", [False, True])
@pytest.mark.parametrize("shape", POOL_SHAPES)
@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_block_epilogue_pool(ops, device, shape, dtype, gaussian, scale):
    border = scale % 2
    shape = (*shape[:2], shape[2] * scale, shape[3] * scale, shape[4])
    case = Case(shape, dtype, gaussian, device, two=scale != 3)
    small, negative, sign_mask = ops.block_epilogue_pool(*case.arguments, scale, border)
    assert small.dtype == negative.dtype == dtype
    close(small, add_border(pooled(case.y, scale), border), dtype)
    close(negative, pooled(case.z.clamp(max=0), scale), dtype)
    assert torch.equal(unpack_bits(sign_mask.cpu(), case.channels), case.z < 0)

    grad = case.draw(*negative.shape).to(device, dtype)
    dz = ops.block_epilogue_pool_grad(grad, sign_mask, case.slope_minus_one, scale)
    assert dz.dtype == dtype
    expected = through(lambda image: pooled(image, scale), case.z.shape, grad)
    close(dz, expected * torch.where(case.z < 0, 1 + case.slope, 1), dtype)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", POOL_SHAPES)
@pytest.mark.parametrize("scale", [2, 3, 4, 5])
def test_blur_pool(ops, device, shape, dtype, scale):
    generator = torch.Generator().manual_seed(scale)
    _, images, height, width, channels = shape
    size = (images, height * scale, width * scale, channels)
    image = torch.randn(size, generator=generator).to(device, dtype)
    small = ops.blur_pool(image, scale)
    assert small.dtype == dtype
    close(small, pooled(image.double().cpu(), scale), dtype)

    grad = torch.randn(small.shape, generator=generator).to(device, dtype)
    dimage = ops.blur_pool_grad(grad, scale)
    assert dimage.dtype == dtype
    close(dimage, through(lambda image: pooled(image, scale), size, grad), dtype)


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (16, 24), (37, 41)])
def test_gaussian_field(ops, device, size):
    seed = torch.tensor([0, 2**62 + 12345, 7])
    field = ops.gaussian_field(seed.to(device), LAYER, 2, *size)
    with use_backend("reference"):
        expected = torch.cat([gaussian_field(one, LAYER, 2, size) for one in seed])[:, 0]
    close(field, expected)


@pytest.mark.parametrize("columns", [1, 17, 4096, 4097, 20_000])
@pytest.mark.parametrize("epsilon", [0.5, float("inf")])
def test_projected_step(ops, device, columns, epsilon):
    generator = torch.Generator().manual_seed(columns)
    delta, grad = torch.randn(2, 4, columns, generator=generator) * 0.01
    inv_scale = torch.tensor([1.0, 0.1, 0.02])[torch.randint(3, (columns,), generator=generator)]
    inv_scale[1::3] = 0
    grad[1] = 0
    grad[2, 0] = float("nan")
    arguments = (delta, grad, inv_scale)
    result = ops.projected_step(*(value.to(device) for value in arguments), 0.25, epsilon)
    expected = projected_step_reference(*(value.double() for value in arguments), 0.25, epsilon)
    torch.testing.assert_close(result.cpu().double(), expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("widths", [(3, 64, 64, 64, 3), (3, 8, 3), (1, 1, 5, 1), (4, 33, 256, 70, 4), (2, 5, 7, 2)])
def test_identity_last(ops, device, widths):
    *centres, last = identity_centres(3, widths, generator=torch.Generator().manual_seed(0))
    inverse = ops.identity_last([centre.to(device) for centre in centres])
    torch.testing.assert_close(inverse.cpu(), last, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", TYPES)
def test_memory_that_is_not_aligned(ops, device, dtype):
    case = Case((1, 2, 4, 6, 8), dtype, False, device)
    aligned = ops.block_epilogue(*case.arguments, 1)
    memory = torch.empty(case.a.numel() + 1, device=device, dtype=dtype)
    shifted = memory[1:].view_as(case.a).copy_(case.a)
    y, sign_mask = ops.block_epilogue(shifted, *case.arguments[1:], 1)
    assert torch.equal(y, aligned[0])
    assert torch.equal(sign_mask, aligned[1])
    assert torch.equal(ops.blur_pool(shifted, 2), ops.blur_pool(case.a, 2))


@pytest.mark.parametrize("gaussian", [False, True])
def test_no_images(ops, device, gaussian):
    case = Case((2, 0, 4, 6, 8), torch.float32, gaussian, device)
    y, sign_mask = ops.block_epilogue(*case.arguments, 1)
    assert y.shape == (0, 6, 8, 8)
    dz, dslope, dnoise = ops.block_epilogue_grad(y, y, sign_mask, *case.arguments[2:], 1)
    assert dz.shape == case.a.shape
    assert torch.equal(dslope.cpu(), torch.zeros(2))
    assert torch.equal(dnoise.cpu(), torch.zeros(case.noise.shape))
    small, _, sign_mask = ops.block_epilogue_pool(*case.arguments, 2, 0)
    assert ops.block_epilogue_pool_grad(small, sign_mask, case.slope_minus_one, 2).shape == case.a.shape
    assert ops.gaussian_field(torch.zeros(2, dtype=torch.int64, device=device), 0, 0, 4, 6).shape == (0, 4, 6)
    nothing = torch.empty(2, 0, device=device)
    assert ops.projected_step(nothing, nothing, nothing[0], 1.0, 1.0).shape == (2, 0)


def test_wrong_arguments_are_refused(ops, device, build):
    if build == "plain":
        pytest.skip("called with what has been checked")
    case = Case((2, 4, 4, 6, 8), torch.float32, False, device)
    a, b, *rest = case.arguments
    slope_minus_one, noise, seed, layer = rest
    y, sign_mask = ops.block_epilogue(a, b, *rest, 0)
    wrong_type = a.half() if build == "cpu" else a.double()
    calls = [
        ("a must be contiguous", lambda: ops.block_epilogue(a.transpose(1, 2), None, *rest, 0)),
        ("a must be float32", lambda: ops.block_epilogue(wrong_type, None, *rest, 0)),
        ("b must have the shape", lambda: ops.block_epilogue(a, b[:2], *rest, 0)),
        ("b must be of type", lambda: ops.block_epilogue(a, b.bfloat16(), *rest, 0)),
        ("no multiple of the number of networks", lambda: ops.block_epilogue(a[:1], None, *rest, 0)),
        (
            "noise must have the shape",
            lambda: ops.block_epilogue(a, b, slope_minus_one, noise[:, 1:].contiguous(), seed, layer, 0),
        ),
        ("border must be 0 or 1", lambda: ops.block_epilogue(a, b, *rest, 2)),
        ("sign_mask must have the shape", lambda: ops.block_epilogue_grad(y, y, sign_mask[:1], *rest, 0)),
        ("y must have the shape", lambda: ops.block_epilogue_grad(y, y[:1], sign_mask, *rest, 0)),
        ("multiples of scale", lambda: ops.block_epilogue_pool(a, None, *rest, 4, 0)),
        ("sign_mask must have the shape", lambda: ops.block_epilogue_pool_grad(y, sign_mask, slope_minus_one, 2)),
        ("multiples of scale", lambda: ops.blur_pool(a, 3)),
    ]
    if build != "cpu":
        calls.append(("at most", lambda: ops.block_epilogue(a.new_zeros(2, 1, 1, 2049), None, *rest, 0)))
    for message, call in calls:
        with pytest.raises(RuntimeError, match=message):
            call()


@has_extension
@pytest.mark.parametrize("gaussian", [False, True])
def test_opcheck(gaussian):
    ops, case = torch.ops.andfast, Case((2, 2, 4, 6, 9), torch.float32, gaussian, "cpu")
    a, b, *rest = case.arguments
    y, sign_mask = ops.block_epilogue(a, b, *rest, 1)
    small = ops.block_epilogue_pool(a, None, *rest, 2, 0)[0]
    check_kernel(ops.block_epilogue, (a, b, *rest, 1))
    check_kernel(ops.block_epilogue_grad, (y, y, sign_mask, *rest, 1))
    check_kernel(ops.block_epilogue_pool, (a, None, *rest, 2, 1))
    check_kernel(ops.block_epilogue_pool_grad, (small, sign_mask, case.slope_minus_one, 2))
    torch.library.opcheck(ops.blur_pool, (a.clone().requires_grad_(), 2))
    torch.library.opcheck(ops.blur_pool_grad, (small.clone().requires_grad_(), 2))
    torch.library.opcheck(ops.gaussian_field, (torch.tensor([3, 4]), 1, 2, 3, 5))


@has_extension
def test_results_do_not_depend_on_threads():
    ops, case = torch.ops.andfast, Case((2, 4, 9, 12, 21), torch.float32, True, "cpu")

    def forward_and_backward():
        y, sign_mask = ops.block_epilogue(*case.arguments, 1)
        return y, sign_mask, *ops.block_epilogue_grad(y, y, sign_mask, *case.arguments[2:], 1)

    check_threads(forward_and_backward)


@has_extension
def test_schemas_are_those_of_the_extension():
    for schema in cuda_on_host.SCHEMAS:
        name = schema.partition("(")[0]
        if hasattr(torch.ops.andfast, name):
            built = getattr(torch.ops.andfast, name).default._schema
            assert str(built) == f"andfast::{torch._C.parse_schema(schema)}"
