"""Optional packages, which may be missing or broken."""

from __future__ import annotations

import importlib
import importlib.util
import re
import shlex
from importlib import metadata

NOT_INSTALLED = "it is not installed"

#: The extras that users may want, each with its requirements, as in pyproject.toml.
EXTRAS = {
    "tensorboard": ("tensorboard",),
    "wandb": ("wandb",),
    "export": ("onnx>=1.16", "onnxruntime>=1.18"),
    "optimizers": ("schedulefree", "pytorch-optimizer>=3"),
    "plot": ("matplotlib>=3.8",),
    "demo": ("gradio>=6.31,<7",),
    "lpips": ("torchmetrics",),
    "heif": ("pillow-heif>=1",),
    "spandrel": ("spandrel", "torchvision>=0.26,<0.29"),
}


def packages_of(extra: str) -> list[str]:
    """The names of an extra's packages as modules are imported by them."""
    return [re.split("[<>=]", requirement)[0].replace("-", "_") for requirement in EXTRAS[extra]]


def install_command(extra: str) -> str:
    """The command that installs what an extra names, wherever andfast itself was installed from."""
    return f"pip install {shlex.join(EXTRAS[extra])}"


def version(package: str) -> str | None:
    """The installed version of a package; None if it is not installed or damaged."""
    try:
        return metadata.version(package)
    except Exception:  # PackageNotFoundError, or any error of a damaged installation
        return None


def problem_of(package: str) -> str | None:
    """Import a package; return None, or why it cannot be imported: `NOT_INSTALLED` or the error."""
    try:
        if importlib.util.find_spec(package) is None:
            return NOT_INSTALLED
        importlib.import_module(package)
    except Exception as error:  # ImportError, or any error of a package that does not fit its dependencies
        return f"it cannot be imported ({type(error).__name__}: {' '.join(str(error).split())})"
    return None
