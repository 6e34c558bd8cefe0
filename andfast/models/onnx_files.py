"""ONNX files of generators: written from PyTorch's reference operations, and run by onnxruntime.

Needs the packages onnx and onnxruntime, the extra `export`.
"""

from __future__ import annotations

import copy
import io
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from andfast.models.weights import ModelError
from andfast.utils.optional import NOT_INSTALLED, install_command, problem_of

# Known to chaiNNer, TensorRT and onnxruntime of the last years.
_OPSET = 17
INPUT, OUTPUT = "input", "output"


def check_packages() -> None:
    """Raise a ModelError if onnx or onnxruntime is missing or broken."""
    problems = {name: problem_of(name) for name in ("onnx", "onnxruntime")}
    if not any(problems.values()):
        return
    missing = [name for name, problem in problems.items() if problem]
    broken = "".join(f"; {name}: {what}" for name, what in problems.items() if what not in (None, NOT_INSTALLED))
    raise ModelError(f"ONNX files need {' and '.join(missing)}: run `{install_command('export')}`{broken}")


class _AnySize(nn.Module):
    """A generator that pads its input to a multiple of pixels, by operations that are the same for all sizes.

    The operations of the generator itself depend on the size, and a recorded graph cannot branch. Here the image is
    always extended by the largest padding, and cut to the multiple. Results equal the generator's, but images smaller
    than the multiple, which a reflection cannot extend, are not supported.
    """

    def __init__(self, model: nn.Module, multiple: int) -> None:
        super().__init__()
        self.model, self.multiple = model, multiple

    def forward(self, x: Tensor) -> Tensor:
        (height, width), more = x.shape[-2:], self.multiple - 1
        padded = F.pad(x, (0, more, 0, more), mode="reflect")
        rows, columns = ((size + more) // self.multiple * self.multiple for size in (height, width))
        scale = self.model.scale
        return self.model(padded[..., :rows, :columns])[..., : height * scale, : width * scale]


def least_size(model: nn.Module) -> int:
    """The least height and width of images for an ONNX file of the generator."""
    return getattr(model, "unshuffle", 1)


def write_onnx(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Write a generator as an ONNX file: "input" (batch, 3, height, width) to "output", from `least_size` up.

    Args:
        model: an `RRDBNet` or a `Compact` without a wrapper; not changed.
        path: the file.
        metadata: recorded in the file.
        dtype: of weights, input and output: float32 or float16.

    Raises:
        ModelError: a package is missing.
        OSError: the file cannot be written.
    """
    check_packages()
    import onnx

    model = copy.deepcopy(model).to("cpu", dtype, memory_format=torch.contiguous_format).eval()
    multiple = least_size(model)
    example = torch.rand(2, 3, 3 * multiple + 5, 4 * multiple + 6, dtype=dtype)
    places = {0: "batch", 2: "height", 3: "width"}
    written = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        # The old exporter, which records operations: the newer one takes seconds for each of RRDBNet's 23 blocks.
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", "Constant folding", UserWarning)
        torch.onnx.export(
            _AnySize(model, multiple) if multiple > 1 else model,
            (example,),
            written,
            dynamo=False,
            opset_version=_OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: places, OUTPUT: {place: f"output_{name}" for place, name in places.items()}},
        )
    graph = onnx.load_model_from_string(written.getvalue())
    onnx.helper.set_model_props(graph, dict(metadata))
    onnx.checker.check_model(graph, full_check=True)
    Path(path).write_bytes(graph.SerializeToString())


def load_onnx(path: str | os.PathLike[str]) -> Callable[[Tensor], Tensor]:
    """Load an ONNX file of a generator, to be run on the CPU: (B, 3, h, w) to float32 (B, 3, scale * h, scale * w).

    Raises:
        ModelError: a package is missing, or onnxruntime refuses the file.
        OSError: the file cannot be read.
    """
    check_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors only
    options.intra_op_num_threads = torch.get_num_threads()
    content = Path(path).read_bytes()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise ModelError(f"{path}: onnxruntime refuses it ({str(error).partition(chr(10))[0]})") from error
    half = session.get_inputs()[0].type == "tensor(float16)"

    def run(image: Tensor) -> Tensor:
        try:
            (result,) = session.run([OUTPUT], {INPUT: (image.half() if half else image.float()).numpy()})
        except Exception as error:  # of operators that were traced for another size
            size = " x ".join(map(str, image.shape[-2:]))
            raise ModelError(f"{path}: onnxruntime cannot run it on {size} pixels") from error
        return torch.from_numpy(result).float()

    return run
