"""Lets torchvision be imported where its compiled operators do not load."""

from __future__ import annotations

import importlib.machinery
import importlib.util
from pathlib import Path

import torch

_declared: list[torch.library.Library] = []


def declare_missing() -> None:
    """Declare the operators that torchvision needs while it is imported, unless its own library brings them.

    torchvision registers shape functions for its operators. Where its library was built for another kind of torch
    (CUDA beside CPU), the operators do not exist and the import fails, of spandrel and lpips, too, which import it.
    Neither calls them: that they are declared is enough.
    """
    if _declared or _load_library():
        return
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _declared.append(library)  # the declarations live as long as this object


def _load_library() -> bool:
    """Load torchvision's library as torchvision itself does; True if the operators are there."""
    spec = importlib.util.find_spec("torchvision")  # does not import it
    if spec is None or spec.origin is None:
        return False
    for suffix in importlib.machinery.EXTENSION_SUFFIXES:
        path = Path(spec.origin).with_name(f"_C{suffix}")
        if path.is_file():
            try:
                torch.ops.load_library(path)
            except OSError:
                continue
            return hasattr(torch.ops.torchvision, "nms")
    return False
