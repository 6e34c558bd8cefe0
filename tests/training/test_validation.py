"""What a validation finds, against scikit-image on images written out."""

import math
from collections.abc import Callable
from pathlib import Path

import lpips_files
import numpy as np
import pytest
import torch
from PIL import Image
from runs import options, records
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from study_images import photograph, write_pairs
from torch import Tensor, nn

from andfast import train
from andfast.data.images import DataError, read_image
from andfast.data.pairs import find_pairs
from andfast.degradation.camera import bicubic_lr, camera_like
from andfast.metrics import make_measure
from andfast.models import Compact
from andfast.training.validation import Validator, upsample_by_pillow


class Enlarge(nn.Module):
    """Repeats pixels."""

    scale = 4

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, lr: Tensor) -> Tensor:
        return lr.repeat_interleave(4, -1).repeat_interleave(4, -2) * self.weight


def y(image: np.ndarray) -> np.ndarray:
    return (image.astype(float) @ [65.481, 128.553, 24.966]) / 255 + 16


def judged(restored: np.ndarray, hr: np.ndarray) -> tuple[float, float]:
    a, b = (y(image)[4:-4, 4:-4] for image in (restored, hr))
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 255}
    _, similarity = structural_similarity(a, b, full=True, **options)
    return peak_signal_noise_ratio(a, b, data_range=255), similarity[5:-5, 5:-5].mean()


def test_it_is_what_scikit_image_says(tmp_path: Path) -> None:
    held_out = [photograph(seed, 64) for seed in range(3)]
    pairs = find_pairs(str(write_pairs(tmp_path, ["a", "b"])), 4)
    results = Validator(held_out, pairs, 4)(Enlarge())
    sets = {
        "bicubic": [(bicubic_lr(hr, 4), hr) for hr in held_out],
        "camera": [(camera_like(hr, 4, seed), hr) for seed, hr in enumerate(held_out)],
        "pairs": [(read_image(pair.lr), read_image(pair.hr)) for pair in pairs],
    }
    assert results.keys() == sets.keys()
    for name, images in sets.items():
        own = [judged(lr.repeat(4, 0).repeat(4, 1), hr) for lr, hr in images]
        bicubic = [
            judged(np.array(Image.fromarray(lr).resize(hr.shape[1::-1], Image.Resampling.BICUBIC)), hr)
            for lr, hr in images
        ]
        expected = dict(zip(("psnr_y", "ssim_y"), np.mean(own, axis=0), strict=True))
        expected |= dict(zip(("bicubic_psnr_y", "bicubic_ssim_y"), np.mean(bicubic, axis=0), strict=True))
        assert results[name] == pytest.approx(expected, abs=1e-9)


def test_at_scale_1_the_input_is_what_results_are_compared_with() -> None:
    hr = photograph(0, 64)
    results = Validator([hr], [], 1)(Compact(1, features=2, convs=0))
    assert (results["bicubic"]["bicubic_psnr_y"], results["bicubic"]["bicubic_ssim_y"]) == (math.inf, 1)
    a, b = (y(image)[1:-1, 1:-1] for image in (camera_like(hr, 1, 0), hr))
    expected = peak_signal_noise_ratio(a, b, data_range=255)
    assert results["camera"]["bicubic_psnr_y"] == pytest.approx(expected, abs=1e-9)
    assert math.isfinite(results["camera"]["psnr_y"])


def test_a_pair_of_rounded_sizes_is_cut(tmp_path: Path) -> None:
    results = []
    for name, hr_size, lr_size in (
        ("whole", (64, 48), (16, 12)),
        ("cut", (67, 47), (16, 12)),
        ("same", (64, 44), (16, 11)),
    ):
        for kind, (height, width) in (("HR", hr_size), ("LR", lr_size)):
            (tmp_path / name / kind).mkdir(parents=True)
            Image.fromarray(photograph(0, 96)[:height, :width].copy()).save(tmp_path / name / kind / "a.png")
        pairs = find_pairs(tmp_path / name, 4)
        results.append(Validator([photograph(0, 64)], pairs, 4)(Enlarge())["pairs"])
    assert results[1] == results[2] != results[0]


@pytest.fixture
def alex(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder where LPIPS finds random weights."""
    hub, package = tmp_path / "hub" / "checkpoints", tmp_path / "packages" / "torchmetrics"
    weights = package / "functional" / "image" / "lpips_models"
    for folder in (hub, weights):
        folder.mkdir(parents=True)
    trunk, linear = lpips_files.write(tmp_path, "alex")
    trunk.rename(hub / "alexnet-owt-7be5be79.pth")
    linear.rename(weights / "alex.pth")
    (package / "__init__.py").touch()
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub.parent))
    monkeypatch.syspath_prepend(package.parent)
    return tmp_path


def test_lpips_is_that_of_the_images_written_out(alex: Path) -> None:
    held_out = [photograph(seed, 64) for seed in range(2)]
    found = Validator(held_out, [], 4, None, [make_measure("lpips_alex", 4)])(Enlarge())["bicubic"]
    plain = Validator(held_out, [], 4)(Enlarge())["bicubic"]
    assert {key: value for key, value in found.items() if "lpips" not in key} == plain

    def distances(enlarge: Callable[[np.ndarray], np.ndarray]) -> list[float]:
        images = [(enlarge(bicubic_lr(hr, 4)), hr) for hr in held_out]
        batches = (torch.from_numpy(np.stack(each)).permute(0, 3, 1, 2) for each in zip(*images, strict=True))
        return lpips_files.distance("alex", *batches).tolist()

    assert found["lpips_alex"] == pytest.approx(np.mean(distances(lambda lr: lr.repeat(4, 0).repeat(4, 1))), rel=1e-4)
    assert found["bicubic_lpips_alex"] == pytest.approx(
        np.mean(distances(lambda lr: upsample_by_pillow(lr, 4))), rel=1e-4
    )


def test_a_run_validates_with_lpips(alex: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {"train__validate_metrics": "[lpips_alex]", "attack__method": "none"}
    assert train.main(options(alex / "run", **more, train__iterations=3)) == 0
    (line,) = (record["validation"] for record in records(alex / "run") if "validation" in record)
    assert all(result["lpips_alex"] > 0 < result["bicubic_lpips_alex"] for result in line.values())
    assert f"PSNR-Y, SSIM-Y, LPIPS alex on bicubic LR {line['bicubic']['psnr_y']:.2f} dB" in capsys.readouterr().out
    # Resuming without it is no other run.
    assert train.main(options(alex / "run", attack__method="none", train__iterations=3)) == 0


def test_lpips_without_its_files_and_for_images_that_are_too_small_is_refused(
    alex: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DataError, match=r"train\.validate_metrics lpips_alex: .* 24 x 24 pixels, too few"):
        Validator([photograph(0, 24)], [], 4, None, [make_measure("lpips_alex", 4)])
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(alex / "elsewhere"))
    assert train.main(options(alex / "run", train__validate_metrics="[lpips_alex]")) == 2
    assert "alexnet-owt-7be5be79.pth" in capsys.readouterr().err
    assert not (alex / "run").exists()


def test_a_pair_that_is_too_small_is_named(tmp_path: Path) -> None:
    for kind, size in (("HR", 16), ("LR", 4)):
        (tmp_path / kind).mkdir()
        Image.fromarray(photograph(0, 16)).resize((size, size)).save(tmp_path / kind / "small.png")
    with pytest.raises(DataError, match=r"small\.png: 16 x 16 pixels, smaller than the 19 x 19 wanted"):
        Validator([photograph(0, 64)], find_pairs(str(tmp_path), 4), 4)
