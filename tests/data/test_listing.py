"""Which files of a folder are images."""

import pytest

from andfast.data.listing import list_images


def test_listing_is_recursive_sorted_and_without_hidden_files(tmp_path):
    for name in ["b.PNG", "a.jpg", "sub/c.Jpeg", "a/z.webp", "notes.txt", ".hidden.png", ".cache/d.png", "x"]:
        path = tmp_path / "data.png" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    (tmp_path / "data.png" / "folder.png").mkdir()
    (tmp_path / "data.png" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    root = tmp_path / "data.png"
    found = [path.relative_to(root).as_posix() for path in list_images(root)]
    assert found == ["a.jpg", "a/z.webp", "b.PNG", "lost.png", "sub/c.Jpeg"]
    with pytest.raises(ValueError, match="no such folder"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="not a folder"):
        list_images(root / "a.jpg")
