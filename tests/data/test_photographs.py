"""The embedded photographs: those that scikit-image itself gives, and none on both sides."""

import importlib.machinery

import numpy as np
import pytest
import skimage.data

from andfast.data import photographs
from andfast.data.images import DataError
from andfast.data.photographs import held_out_photographs, training_photographs


def test_photographs_are_rgb_and_large_enough_for_patches():
    for name, image in training_photographs() + held_out_photographs():
        assert image.dtype == np.uint8, name
        assert image.shape[2] == 3, name
        assert min(image.shape[:2]) >= 300, name


def test_pixels_are_those_of_scikit_image():
    held_out = dict(held_out_photographs())
    for name in ("astronaut", "chelsea", "coffee"):
        np.testing.assert_array_equal(held_out[name], getattr(skimage.data, name)())


def test_held_out_scenes_are_not_trained_on():
    training, held_out = ({name for name, _ in side()} for side in (training_photographs, held_out_photographs))
    assert len(held_out) >= 3
    assert not training & held_out
    assert {"motorcycle_left", "motorcycle_right"} <= training


def test_a_missing_photograph_is_named(monkeypatch, tmp_path):
    spec = importlib.machinery.ModuleSpec("skimage", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(photographs, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match=r"lacks a sample photograph .*astronaut\.png"):
        held_out_photographs()
    monkeypatch.setattr(photographs, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="not installed"):
        training_photographs()
