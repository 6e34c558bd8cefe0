"""Which files of a folder are images, and what is told of others."""

import importlib
import os

import numpy as np
import pytest
from PIL import Image

from andfast.data.images import DataError, read_image
from andfast.data.listing import list_folder, list_images, no_images_message, skipped_message
from andfast.data.suffixes import IMAGE_SUFFIXES, why_unread
from andfast.inference.formats import read_picture


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def found(root):
    return [path.relative_to(root).as_posix() for path in list_images(root)]


def test_listing_is_recursive_sorted_and_without_hidden_files(tmp_path):
    names = ["b.PNG", "a.jpg", "sub/c.Jpeg", "a/z.webp", "notes.txt", ".hidden.png", ".cache/d.png", "x", "Thumbs.db"]
    root = make(tmp_path / "data.png", *names)
    (root / "folder.png").mkdir()
    (root / "lost.png").symlink_to(tmp_path / "nowhere.png")
    assert found(root) == ["a.jpg", "a/z.webp", "b.PNG", "lost.png", "sub/c.Jpeg"]
    assert list_folder(root).passed_over == []
    with pytest.raises(ValueError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a folder"):
        list_images(root / "a.jpg")


def test_every_suffix_is_one_that_is_read(tmp_path):
    kinds = {"PNG": (".apng", ".png"), "BMP": (".bmp",), "DIB": (".dib",), "MPO": (".mpo",), "WEBP": (".webp",)}
    kinds |= {"TIFF": (".tif", ".tiff"), "PPM": (".pbm", ".pgm", ".pnm", ".ppm")}
    kinds |= {"JPEG": (".jfi", ".jfif", ".jif", ".jpe", ".jpeg", ".jpg")}
    kinds |= {"AVIF": (".avif", ".avifs"), "HEIF": (".heic", ".heif", ".hif")}
    assert {suffix for suffixes in kinds.values() for suffix in suffixes} == IMAGE_SUFFIXES
    kinds = {kind: suffixes for kind, suffixes in kinds.items() if why_unread(suffixes[0]) is None}
    image = Image.fromarray(np.full((6, 5), 255, np.uint8))
    for kind, suffixes in kinds.items():
        for suffix in suffixes:
            path = tmp_path / f"white{suffix}"
            of_mode = image.convert({".pbm": "1", ".ppm": "RGB"}.get(suffix, "L"))
            more = {"save_all": True, "append_images": [of_mode]} if kind == "MPO" else {}
            if kind == "HEIF":
                importlib.import_module("pillow_heif").from_pillow(of_mode).save(path)
            else:
                of_mode.save(path, kind, **more)
            assert (read_image(path) == 255).all()
            assert read_picture(path).pixels.shape[:2] == (6, 5)
    assert len(list_images(tmp_path)) == sum(map(len, kinds.values()))


def test_links_are_followed_and_each_folder_is_found_once(tmp_path):
    make(tmp_path / "elsewhere", "d.png", "deep/e.png")
    root = make(tmp_path / "data", "own/o.png", "z/p.png")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "again").symlink_to(tmp_path / "elsewhere" / "deep")  # found there by the first link in order
    (root / "a link to z").symlink_to(root / "z")  # found where it lies
    (root / "own" / "loop").symlink_to(root)
    (root / "own" / "up").symlink_to(tmp_path)
    (root / "copy.png").symlink_to(root / "z" / "p.png")  # a file by another name
    assert found(root) == ["again/e.png", "copy.png", "linked/d.png", "own/o.png", "z/p.png"]
    (tmp_path / "way").symlink_to(root)
    assert found(tmp_path / "way") == found(root)
    assert list_folder(root).passed_over == []


def test_what_is_passed_over_is_told(tmp_path, monkeypatch):
    root = make(tmp_path / "data", "a.png", "i.gif", "sub/j.JXL", "raw.cr2", "notes.txt", ".hidden.gif", "locked/b.png")
    (root / "DIV2K").symlink_to(tmp_path / "not mounted")
    (root / "round").symlink_to(root / "round")
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    listing = list_folder(root)
    assert [path.name for path in listing.paths] == ["a.png"]
    assert skipped_message(listing.passed_over) == (
        "passed over: 2 whose link leads nowhere (DIV2K, round); "
        "2 of a format that is not read (i.gif, j.JXL); 1 that cannot be opened: Permission denied (locked); "
        "1 of a camera's raw format, which is not read: develop to TIFF or PNG first (raw.cr2)"
    )
    with pytest.raises(DataError, match="locked: Permission denied"):
        list_folder(root / "locked")
    assert skipped_message(listing.passed_over * 2) == skipped_message(listing.passed_over)
    assert skipped_message([]) == ""


def test_of_many_files_the_first_are_named(tmp_path):
    make(tmp_path, *(f"{index}.psd" for index in range(8)))
    assert "8 of a format that is not read (0.psd, 1.psd, 2.psd, 3.psd, 4.psd and 3 more)" in skipped_message(
        list_folder(tmp_path).passed_over
    )


def test_a_folder_without_images_says_what_would_be_some(tmp_path):
    make(tmp_path, "a.npy", "b.gif")
    message = no_images_message(list_folder(tmp_path).passed_over)
    assert message.startswith("no images (.apng .avif .avifs .bmp ")
    assert message.endswith("are read); passed over: 1 of a format that is not read (b.gif)")
