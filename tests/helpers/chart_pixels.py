"""What a chart shows, found in its pixels."""

import math

import numpy as np
from PIL import Image, ImageColor


def of_colour(image: Image.Image, colour: str, within: int = 6) -> np.ndarray:
    """Where the image has a colour, (H, W) of bool; the smooth edges of what is drawn have it more or less."""
    pixels = np.asarray(image.convert("RGB")).astype(int)
    return np.abs(pixels - ImageColor.getrgb(colour)).max(axis=2) < within


def heights(image: Image.Image, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """The columns in which lines of a colour are, and the middle of what is of it there."""
    pixels = of_colour(image, colour, within=40)
    columns = np.nonzero(pixels.any(0))[0]
    return columns, np.array([np.nonzero(pixels[:, column])[0].mean() for column in columns])


def centres(image: Image.Image, colour: str) -> list[tuple[float, float]]:
    """The middles of the dots of a colour, the legend's among them, from left to right."""
    rows, columns = np.nonzero(of_colour(image, colour))
    found: list[list[tuple[int, int]]] = []
    for x, y in sorted(zip(columns, rows, strict=True)):
        near = [dot for dot in found if math.dist(dot[0], (x, y)) < 20]
        near[0].append((x, y)) if near else found.append([(x, y)])
    return [tuple(np.mean(dot, axis=0)) for dot in found if len(dot) > 50]
