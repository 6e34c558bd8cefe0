"""How fused operations are judged: at most twice the error of plain PyTorch, both against float64."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def poison(*shape: int, dtype: torch.dtype = torch.float32) -> None:
    """Leave NaN in the memory that the next tensors of this shape are likely to get."""
    _ = [torch.full(shape, math.nan, dtype=dtype) for _ in range(3)]


def nchw(image: Tensor) -> Tensor:
    return image.permute(0, 3, 1, 2)


def nhwc(image: Tensor) -> Tensor:
    return image.permute(0, 2, 3, 1)


def unpack_bits(sign_mask: Tensor, channels: int) -> Tensor:
    """(..., bytes) -> (..., channels) bool; the bits past the channels must be 0."""
    bits = (sign_mask[..., None] >> torch.arange(8, device=sign_mask.device)) & 1
    bits = bits.flatten(-2).bool()
    assert not bits[..., channels:].any()
    return bits[..., :channels]


def check_threads(function: Callable[[], Sequence[Tensor]]) -> None:
    """The results have the same bits in every run, with any number of threads."""
    threads = torch.get_num_threads()
    results = []
    try:
        for number in (1, 2, 3, 16, 1):
            torch.set_num_threads(number)
            results.append(function())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(one, two) for one, two in zip(results[0], other, strict=True))


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm().clamp(min=1e-30))


def passes(
    function: Callable[..., Tensor], arguments: Sequence[Tensor], dy: Tensor, dtype: torch.dtype
) -> list[Tensor]:
    """The result and the gradients of all arguments, computed in `dtype`."""
    given = [argument.to(dtype).detach().requires_grad_() for argument in arguments]
    result = function(*given)
    return [result.detach(), *torch.autograd.grad(result, given, dy.to(dtype))]


def check_against_float64(
    fused: Callable[..., Tensor],
    reference: Callable[..., Tensor],
    arguments: Sequence[Tensor],
    dy: Tensor,
    dtype: torch.dtype,
) -> None:
    rounded = [argument.to(dtype) for argument in arguments]
    exact = passes(reference, rounded, dy.to(dtype), torch.float64)
    plain = passes(reference, rounded, dy, dtype)
    poison(*dy.shape, dtype=dtype)
    found = passes(fused, rounded, dy, dtype)
    floor = 1e-6 if dtype == torch.float32 else 4e-3
    for which, (one, own, true) in enumerate(zip(found, plain, exact, strict=True)):
        assert one.dtype == dtype
        assert one.shape == true.shape
        error, allowed = distance(one, true), distance(own, true)
        assert error <= 2 * allowed + floor, (which, error, allowed)


def kept_bytes(run: Callable[[], Tensor], parameters: Sequence[Tensor]) -> dict[torch.dtype, int]:
    """How many bytes `run` keeps for the backward pass, by type, besides the parameters themselves."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run()
    by_type: dict[torch.dtype, int] = {}
    for tensor in kept.values():
        by_type[tensor.dtype] = by_type.get(tensor.dtype, 0) + tensor.untyped_storage().nbytes()
    return by_type


def check_kernel(operator: torch._ops.OpOverloadPacket, arguments: tuple) -> None:
    """What a kernel that is called from inside other operators alone must keep: its schema, without side effects."""
    torch.library.opcheck(operator, arguments, test_utils="test_schema")
