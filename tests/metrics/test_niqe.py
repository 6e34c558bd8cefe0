"""NIQE against an implementation of its own in NumPy and SciPy (tests/helpers/plain_niqe.py)."""

import numpy as np
import plain_niqe
import pytest
import scipy.io
import skimage.data
import torch

from andfast.data.tensors import to_tensor
from andfast.degradation.camera import gaussian_blur
from andfast.metrics import PristineModel, load_pristine, niqe
from andfast.metrics.niqe import PristineError, gaussian_window, halve, save_pristine


@pytest.fixture(scope="module")
def photograph():
    return np.ascontiguousarray(skimage.data.astronaut()[:300, 100:410])  # nine blocks, and some pixels more


def as_model(seed: int) -> tuple[PristineModel, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """A model of random numbers near those of photographs, for andfast and for NumPy."""
    random = np.random.default_rng(seed)
    spread = random.normal(size=(36, 60)) * 0.1
    values = load_pristine().mean.numpy() + 0.1 * random.normal(size=36), spread @ spread.T / 60
    window = random.uniform(0.5, 1, (7, 7))
    values = (*values, window / window.sum())
    return PristineModel(*map(torch.from_numpy, values)), values


def test_halving_is_matlabs(photograph):
    image = photograph[:96, :58, 0].astype(np.float64)
    found = halve(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(found, plain_niqe.imresize(image, 0.5), atol=1e-11)
    # A ramp stays one: MATLAB's samples lie in the middle between two pixels.
    ramp = halve(torch.arange(40.0, dtype=torch.float64).expand(8, 40))
    np.testing.assert_allclose(ramp[0, 2:-2], np.arange(20)[2:-2] * 2 + 0.5, atol=1e-12)


def test_window_is_matlabs():
    np.testing.assert_allclose(gaussian_window().numpy(), plain_niqe.fspecial(7, 7 / 6), atol=1e-16)


@pytest.mark.parametrize("seed", [0, 1])
def test_niqe_is_that_of_numpy(photograph, seed):
    model, values = as_model(seed)
    degraded = [photograph, gaussian_blur(photograph.astype(float), 1.5), np.rint(photograph / 16) * 16]
    random = np.random.default_rng(seed)
    degraded.append(photograph + random.normal(0, 12, photograph.shape))
    images = [np.rint(image.clip(0, 255)).astype(np.uint8) for image in degraded]
    found = niqe(torch.cat([to_tensor(image) for image in images]), model)
    assert found.dtype == torch.float64
    expected = [plain_niqe.niqe(image, *values) for image in images]
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6)
    assert niqe(to_tensor(images[1])[0], model).item() == pytest.approx(expected[1], abs=1e-6)


@pytest.mark.filterwarnings("ignore:Mean of empty slice")
def test_blocks_without_texture_are_left_out(photograph):
    model, values = as_model(2)
    image = photograph.copy()
    image[:110, :110] = 90  # more than a block: the normalisation looks three pixels beyond it
    assert niqe(to_tensor(image), model)[0].item() == pytest.approx(plain_niqe.niqe(image, *values), abs=1e-6)
    image[:, :200] = 90  # all but three of nine blocks
    assert niqe(to_tensor(image), model)[0].item() == pytest.approx(plain_niqe.niqe(image, *values), abs=1e-6)


def test_an_image_without_texture_has_no_niqe():
    assert niqe(torch.full((2, 3, 192, 192), 0.5)).isnan().tolist() == [True, True]


def test_what_would_be_saved_is_judged(photograph):
    image = to_tensor(photograph)
    assert torch.equal(niqe(image + 0.3 / 255), niqe(image))
    bright = image * 1.5
    assert torch.equal(niqe(bright), niqe(bright.clamp(0, 1)))


def test_the_shipped_model_prefers_photographs(photograph):
    image = photograph.astype(np.float64)
    noisy = image + np.random.default_rng(0).normal(0, 20, image.shape)
    values = [
        niqe(to_tensor(each.clip(0, 255).round().astype(np.uint8))).item()
        for each in (image, gaussian_blur(image, 2), gaussian_blur(image, 4), noisy)
    ]
    clean, blurred, more, noise = values
    assert clean < blurred < more
    assert clean < noise


def test_the_shipped_model_says_what_it_was_made_of():
    model = load_pristine()
    assert torch.linalg.eigvalsh(model.covariance).min() > 0
    assert model.about["blocks"] > 36
    assert all(source["licence"] and source["images"] for source in model.about["sources"])


def test_a_model_survives_its_file(tmp_path):
    model, values = as_model(3)
    save_pristine(PristineModel(model.mean, model.covariance, model.window, {"images": 7}), tmp_path / "own.npz")
    read = load_pristine(tmp_path / "own.npz")
    for name in ("mean", "covariance", "window"):
        assert torch.equal(getattr(read, name), getattr(model, name))
    assert read.about == {"images": 7}
    with np.load(tmp_path / "own.npz") as file:  # as BasicSR reads it
        assert file["mu_pris_param"].shape == (1, 36)
        np.testing.assert_array_equal(file["cov_pris_param"], values[1])
        np.testing.assert_array_equal(file["gaussian_window"], values[2])


def test_foreign_files_are_read(tmp_path):
    _, (mean, covariance, window) = as_model(4)
    np.savez(tmp_path / "basicsr.npz", mu_pris_param=mean[None], cov_pris_param=covariance, gaussian_window=window)
    scipy.io.savemat(tmp_path / "basicsr.mat", {"mu_pris_param": mean[None], "cov_pris_param": covariance})
    scipy.io.savemat(tmp_path / "authors.mat", {"mu_prisparam": mean[None], "cov_prisparam": covariance})
    for name in ("basicsr.npz", "basicsr.mat", "authors.mat"):
        model = load_pristine(tmp_path / name)
        np.testing.assert_array_equal(model.mean.numpy(), mean)
        np.testing.assert_array_equal(model.covariance.numpy(), covariance)
        expected = window if name.endswith("npz") else gaussian_window().numpy()
        np.testing.assert_array_equal(model.window.numpy(), expected)


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz: no such file"):
        load_pristine(tmp_path / "none.npz")
    with pytest.raises(PristineError, match=r"model\.pth: not a pristine model; give an \.npz or \.mat"):
        load_pristine(tmp_path / "model.pth")
    for suffix in (".npz", ".mat"):
        (tmp_path / f"damaged{suffix}").write_bytes(b"nothing of the kind" * 20)
        with pytest.raises(PristineError, match=f"damaged{suffix}: damaged"):
            load_pristine(tmp_path / f"damaged{suffix}")
    np.savez(tmp_path / "other.npz", weights=np.ones(3))
    with pytest.raises(PristineError, match=r"other\.npz: no mu_pris_param in it, but weights"):
        load_pristine(tmp_path / "other.npz")
    np.savez(tmp_path / "short.npz", mu_pris_param=np.ones((1, 18)), cov_pris_param=np.eye(36))
    with pytest.raises(PristineError, match=r"short\.npz: the mean is .* \(18,\); wanted are \(36,\)"):
        load_pristine(tmp_path / "short.npz")
    np.savez(tmp_path / "nan.npz", mu_pris_param=np.ones((1, 36)), cov_pris_param=np.full((36, 36), np.nan))
    with pytest.raises(PristineError, match=r"the covariance is .*finite"):
        load_pristine(tmp_path / "nan.npz")


def test_wrong_images_are_refused():
    with pytest.raises(TypeError, match="uint8"):
        niqe(torch.zeros(3, 200, 200, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"not \(1, 200, 200\)"):
        niqe(torch.rand(1, 200, 200))
    with pytest.raises(ValueError, match="190 x 191 pixels hold less than two blocks of 96 x 96"):
        niqe(torch.rand(3, 190, 191))
