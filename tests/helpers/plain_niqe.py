"""NIQE written anew with NumPy and SciPy, block by block, from the paper and the MATLAB functions' documentation."""

import numpy as np
from scipy.ndimage import correlate
from scipy.special import gamma


def fspecial(size: int, sigma: float) -> np.ndarray:
    """MATLAB's fspecial('gaussian')."""
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    weights = np.exp(-(x * x + y * y) / (2 * sigma * sigma))
    return weights / weights.sum()


def cubic(x: float) -> float:
    x = abs(x)
    if x <= 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0


def imresize(image: np.ndarray, scale: float) -> np.ndarray:
    """MATLAB's imresize of a double image by a scale below 1: 'bicubic', antialiased; by its matrices."""
    for axis in (0, 1):
        length = image.shape[axis]
        matrix = np.zeros((int(np.ceil(length * scale)), length))
        for i in range(len(matrix)):
            centre = (i + 1) / scale + 0.5 * (1 - 1 / scale) - 1
            taps = {j: scale * cubic(scale * (centre - j)) for j in range(int(centre) - 12, int(centre) + 13)}
            for j, tap in taps.items():
                inside = -j - 1 if j < 0 else 2 * length - 1 - j if j >= length else j
                matrix[i, inside] += tap / sum(taps.values())
        image = np.moveaxis(np.tensordot(matrix, image, (1, axis)), 0, axis)
    return image


def aggd(values: np.ndarray) -> tuple[float, float, float]:
    shapes = np.arange(200, 10001) / 1000
    moments = gamma(2 / shapes) ** 2 / (gamma(1 / shapes) * gamma(3 / shapes))
    left = np.sqrt(np.mean(values[values < 0] ** 2))
    right = np.sqrt(np.mean(values[values > 0] ** 2))
    ratio = left / right
    moment = np.mean(np.abs(values)) ** 2 / np.mean(values**2)
    moment *= (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    shape = shapes[np.argmin((moments - moment) ** 2)]
    scale = np.sqrt(gamma(1 / shape) / gamma(3 / shape))
    return shape, left * scale, right * scale


def block_features(block: np.ndarray) -> list[float]:
    shape, left, right = aggd(block)
    found = [shape, (left + right) / 2]
    height, width = block.shape
    for down, across in ((0, 1), (1, 0), (1, 1), (1, -1)):
        rows, columns = (np.arange(height) - down) % height, (np.arange(width) - across) % width
        shape, left, right = aggd(block * block[np.ix_(rows, columns)])
        found += [shape, (right - left) * gamma(2 / shape) / gamma(1 / shape), left, right]
    return found


def luma(image: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) -> MATLAB's rgb2ycbcr(...)(:, :, 1) of it, what lies between two numbers rounded up."""
    return np.floor(16.5 + image.astype(np.float64) @ [65.481, 128.553, 24.966] / 255 + 1e-9)


def features(y: np.ndarray, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(blocks, 36), and (blocks,): their sharpness."""
    rows, columns = y.shape[0] // 96, y.shape[1] // 96
    y, found, sharpness = y[: rows * 96, : columns * 96], [], []
    for size in (96, 48):
        mean = correlate(y, window, mode="nearest")
        deviation = np.sqrt(np.abs(correlate(y * y, window, mode="nearest") - mean**2))
        # Where an image is flat, rounding alone decides about the sign; it is 0 there.
        difference = np.where(np.abs(y - mean) < 1e-9, 0, y - mean)
        normalised, lines = difference / (deviation + 1), []
        for row in range(rows):
            for column in range(columns):
                at = np.s_[row * size : (row + 1) * size, column * size : (column + 1) * size]
                with np.errstate(invalid="ignore"):
                    lines.append(block_features(normalised[at]))
                if size == 96:
                    sharpness.append(deviation[at].mean())
        found.append(lines)
        y = imresize(y, 0.5)
    return np.hstack(found), np.array(sharpness)


def niqe(image: np.ndarray, mean: np.ndarray, covariance: np.ndarray, window: np.ndarray) -> float:
    """NIQE of an image, uint8 (H, W, 3)."""
    found, _ = features(luma(image), window)
    whole = found[~np.isnan(found).any(axis=1)]
    distance = mean - np.nanmean(found, axis=0)
    return np.sqrt(distance @ np.linalg.pinv((covariance + np.cov(whole, rowvar=False)) / 2) @ distance)


def fit(images: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray, int]:
    """A pristine model's mean and covariance, and how many blocks they are of."""
    chosen = []
    for image in images:
        found, sharpness = features(luma(image), fspecial(7, 7 / 6))
        chosen += [line for line, sharp in zip(found, sharpness, strict=True) if sharp > 0.75 * sharpness.max()]
    chosen = np.array(chosen)
    return np.nanmean(chosen, axis=0), np.cov(chosen[~np.isnan(chosen).any(axis=1)], rowvar=False), len(chosen)
