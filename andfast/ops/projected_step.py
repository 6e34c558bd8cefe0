"""The adversary's step: projected gradient ascent on the rows of delta, in a scaled norm (paper, Sec. 3.3).

A row of delta is one degradation network's deviation from the identity. Its length is ||s * delta||_2, s a
vector of scale factors (Sec. 4.3). They are passed as their inverse, r = 1 / s, since factors may be infinite:
r = 0 keeps a coordinate at zero without an infinity in the arithmetic.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from andfast.ops import dispatch


def scaled_norm(delta: Tensor, inv_scale: Tensor) -> Tensor:
    """||s * delta||_2 of every row, over the coordinates that may move.

    Args:
        delta: (N, P), float32 or float64.
        inv_scale: (P,), like `delta`; r = 1 / s, finite and >= 0. Coordinates with r = 0 do not count.

    Returns:
        (N,), like `delta`; summed in float64.
    """
    moves = inv_scale > 0
    scale = torch.where(moves, 1 / inv_scale.double(), 0)
    return torch.linalg.vector_norm(torch.where(moves, delta, 0) * scale, dim=1).to(delta.dtype)


@torch.no_grad()
def projected_step_reference(
    delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float
) -> Tensor:
    """`projected_step(delta, grad, inv_scale, step_size, epsilon)` in plain PyTorch.

    Any device, float32 or float64; arguments are not checked.
    """
    r = inv_scale.double()  # float32 tensors below join it in float64
    scaled_grad = r * grad
    grad_norm = torch.linalg.vector_norm(scaled_grad, dim=1, keepdim=True)
    usable = (grad_norm > 0) & grad_norm.isfinite()
    direction = torch.where(usable, r * scaled_grad / grad_norm, 0)
    moved = torch.where(r > 0, delta + step_size * direction, 0)
    if epsilon < math.inf:
        norm = scaled_norm(moved, r)
        moved = moved * (epsilon / norm).clamp(max=1)[:, None]
    return moved.to(delta.dtype)


def projected_step(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
    """One step of projected gradient ascent on every row: steepest ascent in the scaled norm, then the ball.

    Equivalent to, a row, with `r = inv_scale` and norms in float64:

        moved = delta + step_size * r**2 * grad / norm(r * grad)
        moved * min(1, epsilon / norm(moved / r))

    A row whose gradient is zero in every free coordinate, or not finite in any coordinate, is projected but does not
    move; other rows are not affected. The result carries no gradient.

    Args:
        delta: (N, P), float32 or float64. N and P may be 0.
        grad: like `delta`: the gradient of the loss to maximise.
        inv_scale: (P,), like `delta`; r, finite and >= 0 (not checked). Where it is 0, the result is 0.
        step_size: how far a row moves in the scaled norm; finite and >= 0.
        epsilon: the radius of the ball; > 0. `math.inf`: no projection.

    Returns:
        A new contiguous tensor like `delta`; its rows' scaled norms are at most epsilon, up to rounding.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has the wrong shape, device or value.
    """
    _check(delta, grad, inv_scale, step_size, epsilon)
    run = dispatch.select("projected_step", delta, (len(delta), 1, delta.shape[1]))
    tensors = (tensor.detach().contiguous() for tensor in (delta, grad, inv_scale))
    return run(*tensors, float(step_size), float(epsilon))


def _check(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> None:
    """Raise what `projected_step` documents for invalid arguments."""
    if delta.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"delta must be float32 or float64, got {delta.dtype}")
    if delta.ndim != 2:
        raise ValueError(f"delta must have the shape (N, P), got {tuple(delta.shape)}")
    for name, tensor, shape in (("grad", grad, delta.shape), ("inv_scale", inv_scale, delta.shape[1:])):
        if tensor.dtype != delta.dtype:
            raise TypeError(f"{name} must be {delta.dtype} like delta, got {tensor.dtype}")
        if tensor.device != delta.device:
            raise ValueError(f"{name} must be on {delta.device} like delta, got {tensor.device}")
        if tensor.shape != shape:
            raise ValueError(f"{name} must have the shape {tuple(shape)} to go with delta, got {tuple(tensor.shape)}")
    if not 0 <= step_size < math.inf:
        raise ValueError(f"step_size must be finite and >= 0, got {step_size}")
    if not epsilon > 0:
        raise ValueError(f"epsilon must be > 0 (math.inf for no projection), got {epsilon}")


def _projected_step_compiled(
    delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float
) -> Tensor:
    """The C++ operator (csrc/cpu/projected_step.cpp, csrc/cuda/projected_step.cu)."""
    return torch.ops.andfast.projected_step(delta, grad, inv_scale, step_size, epsilon)


dispatch.register("projected_step", "reference", projected_step_reference)
for _device in ("cpu", "cuda"):
    dispatch.register("projected_step", _device, _projected_step_compiled, device=_device, dtypes=(torch.float32,))

if "cpu" not in dispatch.unavailable:

    @torch.library.register_fake("andfast::projected_step")
    def _(delta: Tensor, grad: Tensor, inv_scale: Tensor, step_size: float, epsilon: float) -> Tensor:
        return torch.empty_like(delta)
