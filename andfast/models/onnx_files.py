"""ONNX files of generators: written by way of PyTorch's reference operations, and run by onnxruntime.

Needs the packages onnx and onnxruntime (`pip install 'andfast[export]'`), which are imported only when asked for.
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
from andfast.utils.optional import NOT_INSTALLED, problem_of

# What chaiNNer, TensorRT and onnxruntime of the last years all know.
_OPSET = 17
INPUT, OUTPUT = "input", "output"


def check_packages() -> None:
    """Refuse where a package is missing or broken.

    Raises:
        ModelError: one is; the message names it.
    """
    problems = {name: problem_of(name) for name in ("onnx", "onnxruntime")}
    if not any(problems.values()):
        return
    missing = [name for name, problem in problems.items() if problem]
    broken = "".join(f"; {name}: {told}" for name, told in problems.items() if told not in (None, NOT_INSTALLED))
    raise ModelError(f"ONNX files need {' and '.join(missing)}: run `pip install 'andfast[export]'`{broken}")


class _AnySize(nn.Module):
    """A generator that pads its input to a multiple of pixels, in operations that are the same for all sizes.

    Which of them the generator itself takes depends on the size, and a recorded graph has no choice left. Here the
    image is always extended by as many pixels as may ever be missing, and cut to the multiple. The pixels are those of
    the generator, but for images smaller than the multiple, which a reflection cannot extend.
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
    """The least height and width of an image that an ONNX file of the generator takes."""
    return getattr(model, "unshuffle", 1)


def write_onnx(
    model: nn.Module, path: str | os.PathLike[str], metadata: Mapping[str, str], dtype: torch.dtype = torch.float32
) -> None:
    """Write a generator as an ONNX file: "input" (batch, 3, height, width) to "output", any batch, height and width.

    Height and width are at least `least_size`. Values are in [0, 1] by convention and not clipped.

    Args:
        model: an `RRDBNet` or a `Compact` without a wrapper; not changed.
        path: where to.
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
        # The exporter that only records: that by way of torch.export took seconds a residual block, which RRDBNet has
        # 23 of. It says that it is old; which one wrote a file makes no difference to who reads it.
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
    """A generator in an ONNX file, run on the CPU by onnxruntime: (B, 3, h, w) to float32 (B, 3, scale * h, scale * w).

    Raises:
        ModelError: a package is missing, or onnxruntime does not take the file.
        OSError: it cannot be read.
    """
    check_packages()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors alone
    options.intra_op_num_threads = torch.get_num_threads()
    content = Path(path).read_bytes()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # of kinds of its own, which have no common base
        raise ModelError(f"{path}: onnxruntime refuses it ({str(error).partition(chr(10))[0]})") from error
    half = session.get_inputs()[0].type == "tensor(float16)"

    def run(image: Tensor) -> Tensor:
        (result,) = session.run([OUTPUT], {INPUT: (image.half() if half else image.float()).numpy()})
        return torch.from_numpy(result).float()

    return run
