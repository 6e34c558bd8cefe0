"""Everything that makes an LR image of an HR image (Sec 3.1, 3.2).

`network` is the paper's degradation prior F, and `lens` what may come before it. `camera` makes camera-like images for
validation. `bsrgan` and `real_esrgan` are the degradations that others train with, chains of blurs (`blur_kernels`),
resizing (`chain`), `noise` and `jpeg`: batched, on the images' device, with parameters for each image.

HR images are float, (B, 3, H, W) in [0, 1].
"""

from andfast.degradation.bsrgan import BSRGANSettings, bsrgan
from andfast.degradation.camera import CameraSettings, camera_like
from andfast.degradation.jpeg import jpeg
from andfast.degradation.lens import Lens
from andfast.degradation.network import DegradationNetwork
from andfast.degradation.real_esrgan import RealESRGANSettings, real_esrgan

__all__ = [
    "BSRGANSettings",
    "CameraSettings",
    "DegradationNetwork",
    "Lens",
    "RealESRGANSettings",
    "bsrgan",
    "camera_like",
    "jpeg",
    "real_esrgan",
]
