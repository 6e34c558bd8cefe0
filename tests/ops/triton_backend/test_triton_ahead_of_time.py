"""What the compiler makes of the kernels for Hopper: no GPU is needed for that."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# Type, H, W, in, out, noise, scale, operations: the network's own layers; and sizes of one, which Triton makes
# constants of.
LAUNCHES = [
    "float16 256 256 64 64 map 4 block block_input_grad weight_grad block_pool block_pool_grad",
    "float16 256 256 64 64 gaussian 4 block block_input_grad block_grad gaussian_field",
    "bfloat16 256 256 3 64 map 4 block weight_grad",
    "float32 2 2 5 3 gaussian 2 block_input_grad block_pool blur_pool_grad",
    "float32 1 9 3 5 map 1 block block_input_grad weight_grad",
    "float32 1 1 3 3 map 1 projected_step",
    "bfloat16 64 64 64 64 map 4 dense_block dense_block_input_grad conv_act leaky_relu_backward",
    "float32 1 9 9 5 map 1 dense_block dense_block_input_grad conv_act leaky_relu_backward",
]
WITHOUT_PRODUCTS = {
    "pool_kernel",
    "pool_grad_kernel",
    "pool_noise_kernel",
    "field_kernel",
    "tail_grad_kernel",
    "leaky_grad_kernel",
}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> dict[str, list[dict]]:
    """What became of each launch of `LAUNCHES`."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    command = [sys.executable, str(Path(__file__).with_name("triton_ahead.py")), *LAUNCHES]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(zip(LAUNCHES, json.loads(done.stdout.splitlines()[-1]), strict=True))


@pytest.mark.parametrize("launches", LAUNCHES)
def test_machine_code(compiled, launches):
    assert compiled[launches]
    for found in compiled[launches]:
        assert found["local"] == found["stack"] == 0, found  # nothing spilled
        assert found["shared"] <= 227 * 1024, found
        if "64 64" in launches and found["kernel"] not in WITHOUT_PRODUCTS:
            assert found["hgmma"] > 0, found
            assert found["asynchronous_copies"] > 0, found
