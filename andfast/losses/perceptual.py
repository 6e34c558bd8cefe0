"""The perceptual loss: distance in the features of VGG19 (Johnson et al., ECCV 2016, arXiv:1603.08155; Eq. 2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

from torch import Tensor

from andfast.losses.common import HRCache, at_least_float32, per_image

PERCEPTUAL_WEIGHTS: dict[str, float] = {"conv1_2": 0.1, "conv2_2": 0.1, "conv3_4": 1.0, "conv4_4": 1.0, "conv5_4": 1.0}
"""c_j of Eq. 2 by layer, which the paper does not give: Real-ESRGAN's, features before the ReLU as in ESRGAN."""


class PerceptualLoss:
    """sum_j c_j mean((phi_j(HR) - phi_j(restored))^2), for each image (Eq. 2, second term).

    The squared 2-norm is a mean over channels and pixels, like the 1-norm beside it. As sums their ratio would depend
    on the layer and the patch (conv1_2 has 64 values a pixel, conv5_4 has 2), and the c_j are from code with means.

    Args:
        features: (B, 3, H, W) in [0, 1] -> (B, C, h, w) by layer, as `VGGFeatures`; in any floating-point type.
        weights: c_j by layer, none negative. Layers of weight 0 are left out, and `features` need not give them.
        distance: "l2", the squared 2-norm; "l1", the 1-norm, as ESRGAN and Real-ESRGAN have it.

    Raises:
        ValueError: a weight is negative or NaN, all are 0, or the distance is unknown.
    """

    def __init__(
        self,
        features: Callable[[Tensor], Mapping[str, Tensor]],
        weights: Mapping[str, float] = PERCEPTUAL_WEIGHTS,
        distance: Literal["l2", "l1"] = "l2",
    ) -> None:
        wrong = [f"{layer} {weight}" for layer, weight in weights.items() if not weight >= 0]
        if wrong:
            raise ValueError(f"the layers' weights are {', '.join(wrong)}; they must be at least 0")
        if not any(weights.values()):
            raise ValueError(
                "all layers of the perceptual loss have weight 0; give one a weight, or leave the loss out"
            )
        if distance not in _DISTANCES:
            raise ValueError(f"distance is {distance!r}; it must be 'l2' or 'l1'")
        self._features = features
        self._weights = {layer: weight for layer, weight in weights.items() if weight}
        self._distance = _DISTANCES[distance]
        self.hr_cache = HRCache(self._layers)

    def __call__(self, restored: Tensor, hr: Tensor) -> Tensor:
        """(restored (B,3,H,W), hr (B,3,H,W) in [0, 1]) -> (B,) in float32 or wider; no gradient flows to `hr`."""
        pairs = zip(self._weights.values(), self._layers(restored), self.hr_cache(hr), strict=True)
        return sum(  # type: ignore[return-value]  # at least one term
            weight * per_image(self._distance(at_least_float32(restored_features - hr_features)))
            for weight, restored_features, hr_features in pairs
        )

    def _layers(self, images: Tensor) -> list[Tensor]:
        features = self._features(images)
        return [features[layer] for layer in self._weights]


_DISTANCES: dict[str, Callable[[Tensor], Tensor]] = {"l2": Tensor.square, "l1": Tensor.abs}
