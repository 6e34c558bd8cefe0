"""Training batches: pure in (seed, step), each image once an epoch, and not stopped by bad files."""

import multiprocessing
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

from andfast.data.images import DataError, write_png
from andfast.data.patches import (
    LEAST_SHARE,
    ImageArray,
    ImageFile,
    PatchBatches,
    WeightedOrder,
    make_loader,
    scan_images,
)


def gradient(height, width, blue):
    """An image whose every pixel tells its row (red) and column (green); blue tells which image it is."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([rows, columns, np.full_like(rows, blue)], 2).astype(np.uint8)


def which(patches):
    """The number of the image that each patch comes from."""
    return patches[:, 2, 0, 0].tolist()


@pytest.fixture
def arrays():
    return [ImageArray(f"image {i}", gradient(40 + i, 60 - i, i)) for i in range(7)]


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        write_png(tmp_path / f"{i}.png", gradient(40, 50, i))
    return tmp_path


@pytest.fixture
def bad_files(folder):
    """Seven files that a scan must skip, and one, `truncated.png`, that only decoding finds out."""
    write_png(folder / "whole.png", np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8))
    whole = (folder / "whole.png").read_bytes()
    (folder / "whole.png").unlink()
    (folder / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.png").write_bytes(b"")
    (folder / "text.jpg").write_text("no image")
    (folder / "directory.png").mkdir()
    (folder / "lost.png").symlink_to(folder / "nowhere.png")
    write_png(folder / "small.png", gradient(31, 50, 0))
    return folder


def items(loader):
    return [patches for patches, _ in loader]


def test_a_patch_is_a_piece_of_its_image(arrays):
    patches, failures = PatchBatches(arrays, patch=16, batch=64, flip=False, rotate=False)[3]
    assert patches.dtype == torch.uint8
    assert patches.shape == (64, 3, 16, 16)
    assert patches.is_contiguous()
    assert failures == []
    for patch, index in zip(patches, which(patches), strict=True):
        top, left = patch[0, 0, 0].item(), patch[1, 0, 0].item()
        expected = arrays[index].array[top : top + 16, left : left + 16]
        np.testing.assert_array_equal(patch.permute(1, 2, 0).numpy(), expected)


def test_all_positions_are_drawn_equally():
    source = ImageArray("image", gradient(19, 20, 0))
    patches, _ = PatchBatches([source], patch=16, batch=2000, flip=False, rotate=False)[0]
    counts = torch.bincount(patches[:, 0, 0, 0].long() * 5 + patches[:, 1, 0, 0].long())
    assert counts.shape == (20,)
    # 100 each are expected, with a standard deviation of 9.7.
    assert counts.min() > 50
    assert counts.max() < 150


@pytest.mark.parametrize(("flip", "rotate", "views"), [(0, 0, 1), (1, 0, 2), (0, 1, 4), (1, 1, 8)])
def test_flips_and_rotations(flip, rotate, views):
    image = gradient(16, 16, 0)
    dataset = PatchBatches([ImageArray("image", image)], patch=16, batch=200, flip=flip, rotate=rotate)
    seen = {patch.numpy().transpose(1, 2, 0).tobytes() for patch in dataset[0][0]}
    mirrored = [image, image[:, ::-1]][: 1 + flip]
    expected = {np.rot90(each, turn).tobytes() for each in mirrored for turn in range(4 if rotate else 1)}
    assert seen == expected
    assert len(expected) == views


@pytest.mark.parametrize("batch", [1, 4, 7, 10])
def test_every_image_is_seen_once_an_epoch(arrays, batch):
    dataset = PatchBatches(arrays, patch=16, batch=batch, seed=5)
    seen = [index for step in range(7) for index in which(dataset[step][0])]  # `batch` epochs of 7 images
    epochs = [tuple(seen[i : i + 7]) for i in range(0, len(seen), 7)]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs)
    assert len(set(epochs)) == len(epochs)


def test_folders_have_their_shares_and_use_their_images_equally(arrays):
    """Over 20,000 patches: exactly, and evenly mixed at all times."""
    order = WeightedOrder([0, 0, 0, 0, 1, 2, 2], [5, 2, 3], seed=3)
    seen = np.array([order[number] for number in range(20_000)])
    assert np.bincount(seen).tolist() == [2500] * 4 + [4000] + [3000] * 2
    shares = [np.isin(seen[start : start + 1000], [0, 1, 2, 3]).mean() for start in range(0, 20_000, 1000)]
    assert all(0.42 < share < 0.58 for share in shares)  # five standard deviations
    of_first = seen[seen < 4]
    assert all(sorted(of_first[start : start + 4]) == [0, 1, 2, 3] for start in range(0, len(of_first), 4))
    assert not np.array_equal(seen[:10_000], seen[10_000:])
    other = WeightedOrder([0, 0, 0, 0, 1, 2, 2], [5, 2, 3], seed=4)
    assert seen[:100].tolist() != [other[number] for number in range(100)]


def test_a_share_is_as_near_as_a_round_allows():
    order = WeightedOrder([0, 1, 2], [1, 1, 1], seed=0)
    assert sorted(np.bincount([order[number] for number in range(10_000)])) == [3333, 3333, 3334]
    order = WeightedOrder([0, 1], [LEAST_SHARE, 1 - LEAST_SHARE], seed=0)
    assert np.bincount([order[number] for number in range(10_000)]).tolist() == [1, 9999]


@pytest.mark.parametrize(("folders", "weights"), [([0, 1], [1, 1e-5]), ([0, 0], [1, 1]), ([0, 1], [1, float("nan")])])
def test_weights_that_no_source_can_have_are_refused(folders, weights):
    with pytest.raises(ValueError, match="wanted"):
        WeightedOrder(folders, weights, 0)


@pytest.mark.parametrize("world", [1, 2])
def test_weighted_batches_depend_on_the_step_alone(arrays, world):
    def batch(step):
        parts = [
            PatchBatches(arrays, patch=16, batch=6 // world, seed=1, rank=rank, world=world, **weighted)[step][0]
            for rank in range(world)
        ]
        return torch.cat(parts)

    weighted = {"weights": [1, 9], "folders": [0, 0, 0, 1, 1, 1, 1]}
    dataset = PatchBatches(arrays, patch=16, batch=6, seed=1, **weighted)
    forward = [dataset[step][0] for step in range(40)]
    for step in (39, 7, 0):
        assert sorted(map(bytes, batch(step).numpy())) == sorted(map(bytes, forward[step].numpy()))
    drawn = np.array([index for patches in forward for index in which(patches)])
    assert 0.03 < (drawn < 3).mean() < 0.2


def test_batches_do_not_depend_on_what_came_before(arrays):
    dataset = PatchBatches(arrays, patch=16, batch=5, seed=1)
    forward = [dataset[step][0] for step in range(6)]
    for step in (5, 0, 3):
        assert torch.equal(dataset[step][0], forward[step])
        assert torch.equal(PatchBatches(arrays, patch=16, batch=5, seed=1, cache_mib=0)[step][0], forward[step])
    assert not torch.equal(forward[0], forward[1])
    assert not torch.equal(PatchBatches(arrays, patch=16, batch=5, seed=2)[0][0], forward[0])


def test_numbers_stay_the_same_in_all_versions(arrays):
    patches, _ = PatchBatches(arrays, patch=16, batch=7, seed=3, flip=False, rotate=False)[1]
    assert patches[:, :, 0, 0].tolist() == FIRST_PIXELS


def test_any_number_of_workers_gives_the_same_batches(folder):
    sources = scan_images([folder], 32).sources
    dataset = PatchBatches(sources, patch=32, batch=4, seed=9)
    alone = items(make_loader(dataset, 0, 6, 0))
    assert len(alone) == 6
    for workers in (1, 2):
        together = items(make_loader(dataset, 0, 6, workers))
        assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
    resumed = items(make_loader(dataset, 4, 6, 2))
    assert all(torch.equal(a, b) for a, b in zip(alone[4:], resumed, strict=True))
    assert items(make_loader(dataset, 4, 4, 0)) == []


def test_ranks_share_out_the_batch_of_one_process(arrays):
    whole, _ = PatchBatches(arrays, patch=16, batch=6, seed=1)[4]
    parts = [PatchBatches(arrays, patch=16, batch=2, seed=1, rank=rank, world=3)[4][0] for rank in range(3)]
    assert torch.equal(torch.cat(parts), whole)


def test_cache_decodes_once_and_stays_within_its_bound(monkeypatch, folder):
    reads = []
    read = ImageFile.read
    monkeypatch.setattr(ImageFile, "read", lambda self: reads.append(self.name) or read(self))
    sources = scan_images([folder], 32).sources
    image_mib = 40 * 50 * 3 / 2**20
    for room, expected in ((6.5, 6), (0.5, 24)):
        reads.clear()
        dataset = PatchBatches(sources, patch=32, batch=6, cache_mib=room * image_mib)
        for step in range(4):
            dataset[step]
        assert len(reads) == expected
        assert dataset._images.size <= dataset._images.capacity
    dataset = PatchBatches(sources, patch=32, batch=6, cache_mib=3.5 * image_mib)
    for step in range(4):
        dataset[step]
        assert dataset._images.size == 3 * 40 * 50 * 3


def test_scan_names_what_it_skips(bad_files):
    scan = scan_images([bad_files], 32)
    assert [source.path.name for source in scan.sources] == [*(f"{i}.png" for i in range(6)), "truncated.png"]
    assert {Path(name).name: reason.split(": ", 1)[1] for name, reason in scan.skipped} == {
        "lost.png": "No such file or directory",
        "small.png": "31 x 50 pixels, smaller than the 32 x 32 wanted",
        "text.jpg": "not an image (AVIF, BMP, HEIC, JPEG, PNG, PPM, TIFF, WebP are read)",
        "zero.png": "not an image (AVIF, BMP, HEIC, JPEG, PNG, PPM, TIFF, WebP are read)",
    }


def test_folders_found_twice_count_once(folder):
    assert len(scan_images([folder, folder], 32).sources) == 6
    (folder / "link.png").symlink_to(folder / "0.png")
    (folder.parent / "way").symlink_to(folder)
    assert len(scan_images([folder, folder.parent / "way", folder / "3.png"], 32).sources) == 6


def test_a_file_may_be_given_for_a_folder(folder, tmp_path):
    assert scan_images([folder / "3.png"], 32).sources == [ImageFile(folder / "3.png")]
    (tmp_path / "list.txt").write_text("0.png")
    with pytest.raises(DataError, match=r"no usable image in: .*list\.txt: not an image"):
        scan_images([tmp_path / "list.txt"], 32)


def test_what_is_passed_over_is_kept(folder):
    (folder / "i.gif").write_bytes(b"")
    assert [path.name for path, _ in scan_images([folder], 32).passed_over] == ["i.gif"]
    with pytest.raises(DataError, match=r"64 x 64 pixels or more"):
        scan_images([folder], 64)
    for path in folder.glob("*.png"):
        path.unlink()
    with pytest.raises(DataError, match=r"Found: no images \(\.apng .* are read\); passed over: 1 .*i\.gif"):
        scan_images([folder], 32)


def test_unusable_folders_are_named(tmp_path, folder):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        scan_images([folder, tmp_path / "nowhere"], 32)
    with pytest.raises(DataError, match=r"Wanted: .* 64 x 64 pixels or more.* 6 in all: .*0\.png: 40 x 50"):
        scan_images([folder], 64)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no usable image in: .*empty\. Wanted: image files, 32 x 32"):
        scan_images([tmp_path / "empty"], 32)
    with pytest.raises(DataError, match="no folder was given"):
        scan_images([], 32)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_that_does_not_decode_is_replaced_and_named_once(bad_files, workers):
    dataset = PatchBatches(scan_images([bad_files], 32).sources, patch=32, batch=7, seed=2)
    batches, failures = zip(*make_loader(dataset, 0, 6, workers), strict=True)
    named = [failure for each in failures for failure in each]
    assert [failure.name for failure in named] == [str(bad_files / "truncated.png")]
    assert "truncated.png: image file is truncated" in named[0].reason
    for step, patches in enumerate(batches):
        assert patches.shape == (7, 3, 32, 32)
        assert set(which(patches)) == set(range(6))
        alone, found = PatchBatches(dataset.sources, patch=32, batch=7, seed=2)[step]
        assert torch.equal(patches, alone)
        assert [failure.name for failure in found] == [str(bad_files / "truncated.png")]
    assert len({tuple(sorted(which(patches))) for patches in batches}) > 1  # not always by the same one


def test_a_source_that_turns_out_small_is_replaced(arrays):
    sources = [*arrays, ImageArray("tiny", gradient(4, 4, 99))]
    patches, failures = PatchBatches(sources, patch=16, batch=8)[0]
    assert 99 not in which(patches)
    assert failures == [("tiny", "tiny: 4 x 4 pixels, smaller than the 16 x 16 wanted")]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_that_decodes_is_an_error_that_names_files(tmp_path, workers):
    sources = [ImageFile(tmp_path / f"gone{i}.png") for i in range(8)]
    with pytest.raises(DataError, match=r"^none of 8 images can be read.* 8 in all: .*gone\d\.png.*and 3 more"):
        items(make_loader(PatchBatches(sources, patch=16, batch=2), 0, 3, workers))


class Deadly:
    """A source that kills the process that reads it."""

    name = "deadly.png"

    def read(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Defective:
    """A source with a defect of its own."""

    name = "defective.png"

    def read(self):
        raise KeyError(f"a defect while reading {self.name}")


@pytest.mark.parametrize(("source", "error"), [(Deadly(), DataError), (Defective(), KeyError)])
def test_a_worker_that_dies_or_raises_is_reported_with_the_file(arrays, source, error):
    loader = make_loader(PatchBatches([*arrays, source], patch=16, batch=8), 0, 3, 1)
    with pytest.raises(error, match=source.name):
        items(loader)
    assert not multiprocessing.active_children()


def test_workers_end_with_the_loop_over_them(arrays):
    for _ in make_loader(PatchBatches(arrays, patch=16, batch=8), 0, 30, 2):
        assert len(multiprocessing.active_children()) == 2
        break
    assert not multiprocessing.active_children()


def test_wrong_arguments_are_refused(arrays):
    for wrong in ({"patch": 0}, {"batch": 0}, {"seed": -1}, {"cache_mib": -1}, {"rank": 1}, {"world": 0}, {"mixed": 3}):
        with pytest.raises(ValueError, match="wanted patch"):
            PatchBatches(arrays, **{"patch": 16, "batch": 2, **wrong})
    with pytest.raises(DataError, match="empty"):
        PatchBatches([], patch=16, batch=2)
    dataset = PatchBatches(arrays, patch=16, batch=2)
    for start, stop, workers in ((-1, 2, 0), (3, 2, 0), (0, 2, -1)):
        with pytest.raises(ValueError, match="wanted workers"):
            make_loader(dataset, start, stop, workers)
    with pytest.raises(IndexError):
        dataset[-1]
    with pytest.raises(ValueError, match="uint8"):
        ImageArray("image", np.zeros((16, 16, 3)))


def test_embedded_photographs_are_sources():
    from andfast.data.photographs import training_photographs

    sources = [ImageArray(*photograph) for photograph in training_photographs()]
    patches, failures = PatchBatches(sources, patch=256, batch=len(sources))[0]
    assert patches.shape == (len(sources), 3, 256, 256)
    assert not failures


# First pixels (row, column, image) of the seven patches of one step, drawn once.
FIRST_PIXELS = [[9, 39, 1], [6, 15, 6], [14, 23, 5], [9, 10, 0], [14, 36, 3], [25, 40, 2], [7, 21, 4]]
