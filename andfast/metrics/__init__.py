"""How close a restored image is to its original (PSNR, SSIM, LPIPS, DISTS), and how natural it looks alone (NIQE)."""

from andfast.metrics.dists import DISTS, load_dists
from andfast.metrics.fidelity import SSIM_WINDOW, psnr, psnr_y, ssim_y, to_y
from andfast.metrics.lpips import LPIPS, load_lpips
from andfast.metrics.measures import FIDELITY, MEASURES, Measure, make_measure
from andfast.metrics.niqe import PristineModel, load_pristine, niqe

__all__ = [
    "DISTS",
    "FIDELITY",
    "LPIPS",
    "MEASURES",
    "SSIM_WINDOW",
    "Measure",
    "PristineModel",
    "load_dists",
    "load_lpips",
    "load_pristine",
    "make_measure",
    "niqe",
    "psnr",
    "psnr_y",
    "ssim_y",
    "to_y",
]
