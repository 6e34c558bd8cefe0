"""Triton's kernels compile for Hopper, use its tensor cores and do not spill. No GPU is needed to compile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Type, H, W, in, out, noise, scale, operations: each kernel in a half type at the network's own widths, with the noise
# that takes most registers; the same kernels for other operations, in small; and sizes of one, which become constants.
LAUNCHES = [
    "float16 256 256 64 64 gaussian 4 block block_input_grad block_grad gaussian_field prepare add_partials",
    "bfloat16 64 64 64 64 map 4 weight_grad blur_pool block_pool_grad dense_block_input_grad",
    "bfloat16 64 64 64 64 map 4 conv_act leaky_relu_backward",
    "bfloat16 64 64 16 16 map 4 block_pool dense_block",
    "float32 1 9 9 5 map 1 block projected_step",
]
WITHOUT_MATRIX_PRODUCTS = {
    "pool_kernel",
    "pool_grad_kernel",
    "pool_noise_kernel",
    "field_kernel",
    "block_grad_kernel",
    "leaky_grad_kernel",
    "prepare_kernel",
    "add_partials_kernel",
}
# Reads the next row into registers during the products: copies to shared memory would leave room for one program only.
WITHOUT_ASYNCHRONOUS_COPIES = {"conv_rows_kernel"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, list[dict]]:
    """Statistics of the kernels of each entry of `LAUNCHES`."""
    paths = os.pathsep.join([str(Path(__file__).parents[3]), os.environ.get("PYTHONPATH", "")])  # bench/ is there
    cache = str(tmp_path_factory.mktemp("triton"))
    environment = {**os.environ, "PYTHONPATH": paths, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": cache}
    command = [sys.executable, str(Path(__file__).with_name("triton_ahead.py")), *LAUNCHES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(LAUNCHES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("launches", LAUNCHES)
def test_machine_code(compiled, launches):
    assert compiled[launches]
    for kernel in compiled[launches]:
        assert kernel["spilled"] == kernel["stack"] == 0, kernel
        assert kernel["shared"] <= 227 * 1024, kernel
        if not launches.startswith("float32") and kernel["kernel"] not in WITHOUT_MATRIX_PRODUCTS:
            assert kernel["matrix_products"] > 0, kernel
            assert (kernel["asynchronous_copies"] > 0) == (kernel["kernel"] not in WITHOUT_ASYNCHRONOUS_COPIES), kernel
