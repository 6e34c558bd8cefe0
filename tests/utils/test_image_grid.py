"""Labelled tables of images."""

import numpy as np

from andfast.utils.image_grid import draw_grid


def test_notes_are_in_the_lower_left_corner_of_their_column_s_images() -> None:
    black = np.zeros((8, 8, 3), np.uint8)
    columns = [("left", [black, black]), ("right", [black, black])]
    plain, noted = draw_grid(columns, 64), draw_grid(columns, 64, {"right": ["1 dB", "-12.5 dB"]})
    assert plain.shape == noted.shape
    cells = [noted[22 + 68 * row : 86 + 68 * row, 72:136] for row in range(2)]
    assert not np.array_equal(*cells)
    for cell in cells:
        assert cell[-1, 0].min() == 255  # readable on dark images, too
        assert set(np.unique(cell[40:])) > {0, 255}
        assert not cell[:40].any()
        cell[:] = 0
    assert np.array_equal(noted, plain)
