"""The cache of decoded images: reads as the files do, whatever happens to it or to whoever makes it."""

import errno
import multiprocessing
import os
import shutil
import signal
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from andfast.data import cache
from andfast.data.cache import CachedImage, cache_images
from andfast.data.images import DataError, write_png
from andfast.data.patches import ImageFile, PatchBatches, make_loader, scan_images
from andfast.utils.console import console
from andfast.utils.locks import locked

PATCH = 24
SIDE = 40


def noise(seed, height=SIDE, width=SIDE):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.fixture
def photographs(tmp_path):
    """Eight images of many kinds, the fifth of which does not decode."""
    folder = tmp_path / "photographs"
    for name, seed in (("0.png", 0), ("1.png", 1), ("4_broken.png", 4), ("sub/7.png", 7)):
        write_png(folder / name, noise(seed, SIDE + seed))
    truncate(folder / "4_broken.png")
    upright = Image.Exif()
    upright[0x0112] = 6
    Image.fromarray(noise(2, 30, 50)).save(folder / "2.jpg", exif=upright)
    Image.fromarray(noise(3)).convert("L").save(folder / "3.jpg")
    Image.fromarray(np.concatenate([noise(5), noise(6)[..., :1]], 2)).save(folder / "5.png")
    Image.fromarray(np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 40).save(folder / "6.tiff")
    return scan_images([folder], PATCH).sources


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


@pytest.fixture
def decoded(monkeypatch):
    """The names of the files that this process decodes."""
    names = []
    read = ImageFile.read
    monkeypatch.setattr(ImageFile, "read", lambda self: names.append(self.path.name) or read(self))
    return names


def batches(sources, **changed):
    return PatchBatches(sources, **{"patch": PATCH, "batch": 5, "seed": 3} | changed)


def items(sources, workers=0):
    return list(make_loader(batches(sources), 0, 5, workers))


def assert_equal(some, others):
    assert len(some) == len(others) > 0
    for (patches, failures), (other_patches, other_failures) in zip(some, others, strict=True):
        assert torch.equal(patches, other_patches)
        assert failures == other_failures


def assert_whole(folder, photographs):
    """The cache gives what the files give, and its folder holds nothing else."""
    assert_equal(items(cache_images(folder, photographs, 0)), items(photographs))
    names = sorted(path.name for path in folder.iterdir())
    stored = [name for name in names if name.endswith(".u8")]
    assert names == sorted(["lock", *stored])
    assert len(stored) == len(photographs) - 1  # one does not decode


def pixel_file(source):
    assert isinstance(source, CachedImage)
    return source.stored


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_to_the_bit(photographs, folder, workers):
    sources = cache_images(folder, photographs, workers)
    assert [source.name for source in sources] == [image.name for image in photographs]
    kinds = [type(source) for source in sources]
    assert kinds == [CachedImage] * 4 + [ImageFile] + [CachedImage] * 3
    expected = items(photographs)
    assert [failure.name for _, failures in expected for failure in failures] == [photographs[4].name]
    assert_equal(items(sources, workers), expected)
    assert_whole(folder, photographs)


def test_pixels_are_mapped_not_copied(photographs, folder):
    sources = cache_images(folder, photographs, 0)
    for source, image in zip(sources, photographs, strict=True):
        if isinstance(source, CachedImage):
            pixels = source.read()
            assert isinstance(pixels, np.memmap)
            assert not pixels.flags.writeable
            np.testing.assert_array_equal(pixels, image.read())
            assert source.stored.read_bytes().endswith(b"\n" + image.read().tobytes())
    dataset = batches(sources)
    dataset[0]
    assert dataset._images.size == 0


def test_a_second_run_decodes_no_image_and_prints_nothing(photographs, folder, decoded, capsys):
    whole = [image for image in photographs if image is not photographs[4]]
    cache_images(folder, whole, 0)
    assert decoded == [image.path.name for image in whole]
    assert "decoding images into the cache" in capsys.readouterr().err
    decoded.clear()
    sources = cache_images(folder, whole, 0)
    assert_equal(items(sources), items(cache_images(folder, whole, 2)))
    assert not decoded
    assert capsys.readouterr().err == ""


def test_only_what_changed_is_decoded_anew(photographs, folder, decoded, caplog):
    before = cache_images(folder, photographs, 0)
    assert "not stored: 1 image that cannot be decoded or changed just now" in caplog.text
    decoded.clear()
    stamp = photographs[1].path.stat()
    write_png(photographs[1].path, noise(1)[::-1])  # another image of the same size, with a new time of change
    os.utime(photographs[1].path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 10))
    after = cache_images(folder, photographs, 0)
    assert decoded == ["1.png", "4_broken.png"]
    assert pixel_file(after[0]) == pixel_file(before[0])
    assert not pixel_file(before[1]).exists()
    assert_whole(folder, photographs)


def test_pixels_of_images_that_are_gone_are_removed(photographs, folder, tmp_path):
    write_png(tmp_path / "other" / "a.png", noise(8))
    write_png(tmp_path / "disk" / "b.png", noise(9))
    all_images = [*photographs, ImageFile(tmp_path / "other" / "a.png"), ImageFile(tmp_path / "disk" / "b.png")]
    sources = cache_images(folder, all_images, 0)
    photographs[0].path.unlink()
    (tmp_path / "disk").rename(tmp_path / "unmounted")
    cache_images(folder, photographs[1:], 0)
    assert not pixel_file(sources[0]).exists()
    # Not asked for now, but still there, or on a disk that is not there now.
    assert all(pixel_file(source).exists() for source in (*sources[1:4], *sources[5:]))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(content)


def flip_in_header(path):
    path.write_bytes(path.read_bytes().replace(b".png", b".pnG", 1))


def of_another_image(path):
    other = next(each for each in path.parent.glob("*.u8") if each != path)
    path.write_bytes(other.read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        *(truncate, Path.unlink, flip_in_header, of_another_image),
        lambda path: path.write_bytes(path.read_bytes() + b"x"),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(noise(0).tobytes()),
    ],
)
def test_pixels_that_are_not_whole_are_stored_again(photographs, folder, damage, decoded, caplog):
    stored = pixel_file(cache_images(folder, photographs[:4], 0)[0])
    decoded.clear()
    damage(stored)
    there = stored.exists()
    cache_images(folder, photographs[:4], 0)
    assert decoded == ["0.png"]
    assert (f"not whole, and removed: {stored.name}" in caplog.text) == there
    assert_whole(folder, photographs)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink, flip_in_header])
def test_pixels_that_are_damaged_are_never_given_out(photographs, folder, workers, damage, capfd):
    sources = cache_images(folder, photographs, 0)
    damage(pixel_file(sources[0]))
    assert_equal(items(sources, workers), items(photographs))
    message = capfd.readouterr().err
    assert f"{pixel_file(sources[0])} cannot be used (" in message
    assert message.count("cannot be used") == 1 or workers  # two may find out at the same time
    assert_whole(folder, photographs)


def test_a_checksum_is_looked_at_once(photographs, folder):
    source = cache_images(folder, photographs, 0)[0]
    source.read()
    flip(source.stored)
    assert (source.read() != photographs[0].read()).sum() == 1  # the price of looking once a run; the next one sees it
    assert_equal(items(cache_images(folder, photographs, 0)), items(photographs))


def test_pixels_of_another_decoder_are_not_used(photographs, folder, monkeypatch, caplog):
    before = cache_images(folder, photographs, 0)
    own = cache._decoder(".png")
    monkeypatch.setattr(cache, "_decoder", lambda suffix: "Pillow of tomorrow")
    after = cache_images(folder, photographs, 0)
    assert f"made by {own}, now it is Pillow of tomorrow" in caplog.text
    assert not pixel_file(before[0]).exists()
    assert pixel_file(after[0]) != pixel_file(before[0])
    assert_whole(folder, photographs)


def test_only_what_decodes_a_file_counts(monkeypatch):
    monkeypatch.setattr(cache, "version", lambda package: f"{package} 1")
    before = {suffix: cache._decoder.__wrapped__(suffix) for suffix in (".jpg", ".heic", ".avif")}
    monkeypatch.setattr(cache, "version", lambda package: f"{package} 2")
    changed = [suffix for suffix in before if cache._decoder.__wrapped__(suffix) != before[suffix]]
    assert changed == [".heic"]
    assert "libjpeg" not in before[".avif"]


def test_a_cache_of_an_earlier_format_is_replaced(photographs, folder):
    folder.mkdir()
    (folder / "index.jsonl").write_text('00000000 ["andfast image cache"]\n')
    (folder / f"{0:032x}.u8").write_bytes(noise(0).tobytes())
    assert_whole(folder, photographs)


def begin(output, function, *arguments):
    """Start a process that calls `function` and writes its messages to `output`."""

    def call():
        sys.stderr = output.open("w", buffering=1)
        with console():
            function(*arguments)

    process = multiprocessing.get_context("fork").Process(target=call)
    process.start()
    return process


def die_with_three(moment, folder, images, workers):
    """Make a cache, and be killed when three images are stored."""
    run, write, store = os.getpid(), cache.written_whole, cache._store

    def three_are_stored():
        return len(list(folder.glob("[0-9a-f]*.u8"))) >= 3

    @contextmanager
    def half_written(path):
        with write(path) as temporary:
            yield temporary
            if three_are_stored():
                os.truncate(temporary, 1000)
                os.kill(run, signal.SIGKILL)

    def stored(*arguments, **options):
        store(*arguments, **options)
        if three_are_stored():
            os.kill(run, signal.SIGKILL)

    if moment == "half-written":
        cache.written_whole = half_written
    else:
        cache._store = stored
    cache_images(folder, images, workers)


@pytest.mark.parametrize(("moment", "workers"), [("half-written", 0), ("stored", 0), ("stored", 2)])
def test_killed_at_any_moment_it_continues(photographs, folder, moment, workers, decoded, tmp_path):
    process = begin(tmp_path / "output", die_with_three, moment, folder, photographs, workers)
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, (tmp_path / "output").read_text()
    there = len(list(folder.glob("[0-9a-f]*.u8")))
    cache_images(folder, photographs, 0)
    assert len(decoded) <= 5
    if not workers:  # which may finish their last image after the process that they worked for
        assert len(decoded) == 8 - there == 5
        assert_whole(folder, photographs)
    assert_equal(items(cache_images(folder, photographs, 2)), items(photographs))


def test_two_that_make_one_cache_take_turns(photographs, folder, tmp_path):
    folder.mkdir()
    outputs = [tmp_path / "first", tmp_path / "second"]
    with locked(folder):
        processes = [begin(output, cache_images, folder, photographs, 1) for output in outputs]
        until = time.monotonic() + 60
        while not all(output.exists() and "waiting until it is done there" in output.read_text() for output in outputs):
            assert time.monotonic() < until
            time.sleep(0.02)
        assert [path.name for path in folder.iterdir()] == ["lock"]
    for process in processes:
        process.join(60)
    messages = [output.read_text() for output in outputs]
    assert [process.exitcode for process in processes] == [0, 0], messages
    # The one that came second had only the image left that does not decode.
    assert sorted("8/8" in message for message in messages) == [False, True], messages
    assert_whole(folder, photographs)


def test_too_little_space_is_told_before_anything_is_decoded(photographs, folder, decoded, monkeypatch):
    usage = shutil.disk_usage("/")
    needed = sum(-(-image.read().nbytes // 4096) * 4096 for i, image in enumerate(photographs) if i != 4)
    needed += -(-3 * (SIDE + 4) * SIDE // 4096) * 4096  # its header does not tell that the fifth is broken
    decoded.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed - 1))
    with pytest.raises(DataError, match=rf"{folder}: it needs 0\.00 GiB more, and 0\.00 GiB are free"):
        cache_images(folder, photographs, 0)
    assert not decoded
    assert not list(folder.glob("[0-9a-f]*.u8"))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=needed))
    cache_images(folder, photographs, 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))
    cache_images(folder, photographs[:4], 0)  # which needs nothing more


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EPERM, errno.EACCES])
def test_where_the_free_space_is_not_told_the_cache_is_made(photographs, folder, number, monkeypatch, caplog):
    def refuse(path):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(shutil, "disk_usage", refuse)
    cached = cache_images(folder, photographs, 0)
    told = [line for line in caplog.messages if os.strerror(number) in line]
    assert len(told) == 1
    assert str(folder) in told[0]
    assert sum(isinstance(source, CachedImage) for source in cached) == len(photographs) - 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_disk_that_fills_up_is_told_and_leaves_nothing_half_made(photographs, folder, workers, monkeypatch):
    write = cache.written_whole

    @contextmanager
    def full(path):
        with write(path) as temporary:
            yield temporary
            if len(list(folder.glob("[0-9a-f]*.u8"))) >= 3:
                os.truncate(temporary, 100)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache, "written_whole", full)
    with pytest.raises(DataError, match=rf"^image cache {folder}: No space left on device while .* GiB are free"):
        cache_images(folder, photographs, workers)
    assert len(list(folder.glob("[0-9a-f]*.u8"))) >= 3
    assert not list(folder.glob(".*"))
    monkeypatch.undo()
    assert_whole(folder, photographs)


@pytest.mark.parametrize("name", ["photo.png", "notes.txt", ".hidden", "sub/thing", "0123.u8", "index.jsonl.old"])
def test_a_folder_of_other_files_is_refused(photographs, folder, name):
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("dear")
    with pytest.raises(DataError, match=rf"{folder}: holds {name.partition('/')[0]}, which is no part of a cache"):
        cache_images(folder, photographs, 0)
    assert [path.name for path in folder.iterdir()] == [name.partition("/")[0]]


def test_a_cache_that_cannot_be_made_is_named(photographs, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "cache"):
        with pytest.raises(DataError, match=f"image cache {folder}: "):
            cache_images(folder, photographs, 0)


def test_an_image_that_fails_for_a_passing_reason_is_stored_by_the_next_run(photographs, folder, monkeypatch, caplog):
    with monkeypatch.context() as patched:
        patched.setattr("andfast.data.picture.orient", lambda *_: (_ for _ in ()).throw(MemoryError()))
        assert cache_images(folder, photographs, 0) == photographs
    assert "not stored: 8 images that cannot be decoded or changed just now" in caplog.text
    assert_whole(folder, photographs)


def test_an_image_that_changes_meanwhile_is_not_stored(photographs, folder, monkeypatch):
    with monkeypatch.context() as patched:
        read = ImageFile.read
        other = noise(99, SIDE + 1, SIDE + 1)

        def meddled(self):
            if self is photographs[0]:
                write_png(self.path, other)
            return read(self)

        patched.setattr(ImageFile, "read", meddled)
        sources = cache_images(folder, photographs, 0)
    assert sources[0] is photographs[0]
    assert len(list(folder.glob("[0-9a-f]*.u8"))) == 6
    np.testing.assert_array_equal(cache_images(folder, photographs, 0)[0].read(), other)


def test_an_image_that_is_gone_fails_as_it_would_without_the_cache(photographs, folder):
    cache_images(folder, photographs, 0)
    photographs[0].path.unlink()
    assert cache_images(folder, photographs, 0)[0] is photographs[0]
    assert_equal(items(cache_images(folder, photographs, 0)), items(photographs))


def test_a_worker_that_dies_is_reported_with_the_image(photographs, folder, monkeypatch):
    read = ImageFile.read

    def deadly(self):
        if self is photographs[3]:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self)

    monkeypatch.setattr(ImageFile, "read", deadly)
    with pytest.raises(DataError, match=rf"(killed|exited).* while reading: .*{photographs[3].path.name}"):
        cache_images(folder, photographs, 1)
    monkeypatch.undo()
    assert_equal(items(cache_images(folder, photographs, 1)), items(photographs))


def test_names_that_are_no_utf_8_are_known_again(folder, tmp_path, decoded):
    for index in range(2):
        write_png(tmp_path / "in" / os.fsdecode(b"caf\xe9_%d.png" % index), noise(index))
    images = scan_images([tmp_path / "in"], PATCH).sources
    cache_images(folder, images, 0)
    assert len(decoded) == 2
    found = cache_images(folder, images, 0)
    assert len(decoded) == 2
    assert [source.name for source in found] == [image.name for image in images]
    assert [source.read().tolist() for source in found] == [noise(index).tolist() for index in range(2)]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS])
def test_a_share_without_locks_is_told_and_used(photographs, folder, number, monkeypatch, caplog):
    import fcntl

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    assert_whole(folder, photographs)
    assert "cannot be locked" in caplog.text


@pytest.mark.parametrize("number", [errno.ENODEV, errno.EINVAL])
def test_a_share_without_memory_maps_is_read(photographs, folder, number, decoded, monkeypatch, capsys):
    def refuse(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "memmap", refuse)
    sources = [source for source in cache_images(folder, photographs, 0) if isinstance(source, CachedImage)]
    count = len(decoded)
    first = sources[0].read()
    assert (first == ImageFile(sources[0].path).read()).all()
    truncate(pixel_file(sources[1]))
    sources[1].read()
    assert "cannot be used" in capsys.readouterr().err
    assert len(decoded) == count + 1
