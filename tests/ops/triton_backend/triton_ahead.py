"""Compile the kernels that Triton operations launch, for a GPU that need not be present; print statistics as JSON.

Runs in a separate process, without the interpreter. Launches are recorded, not made, so configurations,
specialisations and types are those of the operations; tensors are on the meta device.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from andfast.ops.backends.base import Epilogue
from andfast.ops.backends.triton.backend import TritonBackend
from andfast.ops.backends.triton.gradient import Partials
from andfast.ops.backends.triton.pool import blur_pool, blur_pool_grad
from andfast.ops.backends.triton.prepare import prepare
from andfast.ops.backends.triton.projected_step import projected_step
from andfast.ops.theta_layout import ThetaLayout
from bench.triton_resources import Launch, as_launched

_recorded: dict[str, Launch] = {}  # by the kernel's name


def _record(kernel: JITFunction, *args: object, grid: object, warmup: bool, **kwargs: object) -> None:
    """Note the launch, in place of `JITFunction.run`; of several launches of a kernel (dense blocks), the last."""
    _recorded[kernel.__name__] = as_launched(kernel, dict(zip(kernel.arg_names, args, strict=False)) | kwargs)


def _compile(launch: Launch) -> dict[str, object]:
    """Compile for Hopper and count what shows how well it went."""
    with contextlib.redirect_stdout(io.StringIO()) as log:
        compiled = triton.compile(launch.source, target=GPUTarget("cuda", 90, 32), options=dict(launch.options))
    resources = r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads"
    ((stack, stores, loads),) = re.findall(resources, log.getvalue())
    return {
        "kernel": launch.kernel.__name__,
        "stack": int(stack),
        "spilled": int(stores) + int(loads),
        "matrix_products": compiled.asm["ptx"].count("wgmma.mma_async"),
        "asynchronous_copies": len(re.findall(r"cp\.async\.c[ag]\.", compiled.asm["ptx"])),
        "shared": compiled.metadata.shared,
    }


def _launch(
    operation: str, dtype: torch.dtype, size: tuple[int, int], widths: tuple[int, int], kind: str, scale: int
) -> None:
    """Launch one operation on six images: for two networks, or for six where images are tiny."""
    kernels = TritonBackend()
    (height, width), (into, out), networks, batch = size, widths, 2 if size[0] > 2 else 6, 6

    def new(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    def epilogue(channels: int) -> Epilogue:
        if kind == "map":
            return Epilogue(new(networks), new(networks, height, width))
        return Epilogue(new(networks), new(networks, channels), new(networks, dtype=torch.int64), 1)

    x, dz = new(batch, height, width, into, dtype=dtype), new(batch, height, width, out, dtype=dtype)
    weights = new(networks, out, into), new(networks, out, into, 9)
    forward, backward = kernels.pack_weights(*weights, dtype, False), kernels.pack_weights(*weights, dtype, True)
    slope_minus_one, sign_mask = new(networks), new(batch, height, width, -(-into // 8), dtype=torch.uint8)
    layout = ThetaLayout(size, scale, into, 5, "map" if kind == "map" else "gaussian")
    theta = new(networks, layout.size)
    pooled = new(batch, height // scale, width // scale, into, dtype=dtype)
    growth = out // 2
    dense = [new(growth if k < 4 else into, into + k * growth, 3, 3, dtype=dtype) for k in range(5)]
    biases = [new(len(weight), dtype=dtype) for weight in dense]
    dense_sign_mask = new(batch, height, width, 4, -(-growth // 8), dtype=torch.uint8)
    {
        "block": lambda: kernels.block(x, forward, epilogue(out)),
        "block_pool": lambda: kernels.block_pool(x, forward, epilogue(out), scale),
        "conv": lambda: kernels.conv(x, forward),
        "weight_grad": lambda: kernels.conv_weight_grad(x, dz, networks),
        "input_grad": lambda: kernels.conv_input_grad(dz, backward),
        "block_input_grad": lambda: kernels.block_input_grad(dz, backward, x, sign_mask, epilogue(into)),
        "block_grad": lambda: kernels.block_grad(x, x, sign_mask, epilogue(into)),
        "dense_block": lambda: kernels.dense_block(x, dense, biases, True),
        "dense_block_input_grad": lambda: kernels.dense_block_input_grad(x, dense, dense_sign_mask),
        "conv_act": lambda: kernels.conv_act(x, new(out, into, 3, 3, dtype=dtype), new(out), new(out), True),
        "leaky_relu_backward": lambda: kernels.leaky_relu_backward(x, sign_mask, new(into)),
        "block_pool_grad": lambda: kernels.block_pool_grad(pooled, sign_mask, slope_minus_one, scale),
        "blur_pool": lambda: blur_pool(x, scale),
        "blur_pool_grad": lambda: blur_pool_grad(pooled, scale),
        "gaussian_field": lambda: kernels.gaussian_field(new(networks, dtype=torch.int64), 1, 3, size),
        "prepare": lambda: prepare(layout, new(batch, 3, height, width), theta, theta, dtype, True),
        "add_partials": lambda: Partials(layout, networks, batch // networks, dtype, theta.device).add(theta),
        "projected_step": lambda: projected_step(new(4, 40_000), new(4, 40_000), new(40_000), 0.3, 0.5),
    }[operation]()


def main() -> None:
    """Each argument: type, height, width, in, out, kind of noise, scale, operations; with spaces between."""
    JITFunction.run = _record
    triton.knobs.nvidia.dump_ptxas_log = triton.knobs.compilation.always_compile = True
    compiled = []
    for argument in sys.argv[1:]:
        name, *numbers, kind, scale, operations = argument.split(maxsplit=7)
        height, width, into, out = map(int, numbers)
        results = []
        for operation in operations.split():
            _recorded.clear()
            _launch(operation, getattr(torch, name), (height, width), (into, out), kind, int(scale))
            results += [_compile(launch) for launch in _recorded.values()]
        compiled.append(results)
    print(json.dumps(compiled))


if __name__ == "__main__":
    main()
