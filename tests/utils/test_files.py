"""Files that are written whole, whatever the folder, its share and the name are like."""

import ast
import errno
import json
import os
import stat
import threading
from pathlib import Path

import pytest
import torch

from andfast.utils import files
from andfast.utils.files import check_name, remove_unfinished, write_json, write_text, written_whole

LONG = {"letters": "a" * 251 + ".png", "three bytes each": "\u5149" * 83 + ".tiff", "one suffix": "." + "b" * 254}


def write(path, text, **options):
    with written_whole(path, **options) as temporary:
        temporary.write_text(text)


def refusing(function, number, when=lambda *values: True):
    """A function of `os` that fails where `when` says so of its arguments."""

    def refuse(*values, **options):
        if when(*values):
            raise OSError(number, os.strerror(number), *(str(value) for value in values[:1] if type(value) is not int))
        return function(*values, **options)

    return refuse


def is_folder(descriptor):
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def exists(_, target):
    return os.path.lexists(target)


@pytest.mark.parametrize("name", LONG.values(), ids=LONG)
def test_every_name_that_a_file_can_have_can_be_written(tmp_path, name):
    seen = []
    with written_whole(tmp_path / name) as temporary:
        seen.append(temporary.name)
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "new"
    assert len(os.fsencode(seen[0])) <= 143  # what encrypting file systems leave of 255
    if len(name) < 255:  # so that the format is found by it
        assert os.path.splitext(seen[0])[1] == os.path.splitext(name)[1]


@pytest.mark.parametrize("name", [*LONG.values(), "a.png", "a\nb.png", os.fsdecode(b"caf\xe9.png")])
def test_what_a_killed_process_left_is_known_by_its_name(tmp_path, name):
    left = files._new_file(tmp_path / name)
    (tmp_path / ".other.png").touch()
    assert left.parent == tmp_path
    remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".other.png"]


@pytest.mark.parametrize(("name", "fits"), [("a" * 255, True), ("a" * 256, False), ("\u5149" * 86, False)])
def test_a_name_that_is_too_long_is_known_before_there_is_a_file(tmp_path, name, fits):
    for path in (tmp_path / name, tmp_path / "new" / name, tmp_path / name / "x.png"):
        if fits:
            check_name(path)
        else:
            with pytest.raises(OSError, match="too long") as error:
                check_name(path)
            assert error.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_a_path_that_is_too_long_is_known_before(tmp_path):
    with pytest.raises(OSError, match="too long"):
        check_name(tmp_path.joinpath(*["a" * 200] * 30))


@pytest.mark.parametrize(("umask", "rights"), [(0o077, 0o600), (0o022, 0o644), (0o002, 0o664)])
def test_a_file_has_the_rights_of_any_new_one(tmp_path, umask, rights):
    before = os.umask(umask)
    try:
        write(tmp_path / "a", "new")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "plain").stat().st_mode == stat.S_IFREG | rights


def test_threads_that_write_leave_the_umask_alone(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(os, "umask", lambda mask: asked.append(mask) or 0)
    threads = [threading.Thread(target=write, args=(tmp_path / str(index), "new")) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not asked
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EACCES, errno.EBADF, errno.EPERM, errno.ENOSYS])
def test_a_share_may_refuse_to_sync_folders(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing(os.fsync, number, is_folder))
    write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("number", [errno.EACCES, errno.EINVAL, errno.EISDIR, errno.ENOTSUP])
def test_a_share_may_refuse_to_open_folders(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "open", refusing(os.open, number, lambda path, *_: os.path.isdir(path)))
    write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOTSUP, errno.EROFS])
def test_a_share_may_refuse_to_sync_files(tmp_path, monkeypatch, number):
    monkeypatch.setattr(os, "fsync", refusing(os.fsync, number, lambda descriptor: not is_folder(descriptor)))
    monkeypatch.setattr(os, "chmod", refusing(os.chmod, errno.EPERM))
    write(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("function", ["fsync", "replace", "open"])
def test_what_is_lost_is_an_error_that_names_the_file(tmp_path, monkeypatch, function, number):
    (tmp_path / "a").write_text("old")
    with monkeypatch.context() as patch:
        patch.setattr(os, function, refusing(getattr(os, function), number))
        with pytest.raises(OSError, match=os.strerror(number)) as error:
            write(tmp_path / "a", "new")
    assert (error.value.errno, error.value.filename) == (number, str(tmp_path / "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() == "old"


@pytest.mark.parametrize("number", [errno.EEXIST, errno.EACCES, errno.EPERM])
def test_a_share_may_rename_over_no_file(tmp_path, monkeypatch, number):
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name), number, exists))
    for text in ("first", "second", "third"):
        write(tmp_path / "a", text, previous=tmp_path / "before")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "third", "before": "second"}


def test_where_no_name_can_be_given_at_all_the_old_file_stays(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("old")
    # Nothing new gets one; the old file can be moved, and comes back.
    for name in ("replace", "rename"):
        function = getattr(os, name)
        monkeypatch.setattr(os, name, refusing(function, errno.EACCES, lambda file, _: "unfinished" in str(file)))
    with pytest.raises(PermissionError) as error:
        write(tmp_path / "a", "new")
    assert error.value.filename == str(tmp_path / "a")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "old"}


def test_a_folder_of_the_name_is_left_alone(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError, match=r"irectory|denied") as error:
        write(tmp_path / "a", "new")
    assert error.value.filename == str(tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("kind", ["file", "dangling"])
def test_a_folder_that_is_none_is_named(tmp_path, kind):
    parent = tmp_path / "parent"
    parent.touch() if kind == "file" else parent.symlink_to(tmp_path / "nowhere")
    with pytest.raises(NotADirectoryError) as error:
        write(parent / "a", "new")
    assert error.value.filename == str(parent)
    assert ("a link that leads nowhere" in str(error.value)) == (kind == "dangling")


def test_texts_are_in_utf_8(tmp_path):
    name = os.fsdecode(b"caf\xe9 \xe5\x85\x89")
    write_json(tmp_path / "a.json", {"name": name})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"name": name}
    write_text(tmp_path / "a.md", name)
    assert (tmp_path / "a.md").read_bytes() == b"caf\\udce9 \xe5\x85\x89"


def test_tensors_are_written_under_any_name(tmp_path):
    path = tmp_path / os.fsdecode(b"caf\xe9.pt")
    with written_whole(path) as temporary:
        files.write_torch({"a": torch.ones(2)}, temporary)
    assert torch.load(path)["a"].tolist() == [1, 1]


def calls_without_encoding(source):
    """The lines of a program that open a text in whatever encoding the locale has."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        owner = getattr(getattr(call.func, "value", None), "id", "")
        given = {keyword.arg for keyword in call.keywords}
        modes = [value.value for value in [*call.args, *(keyword.value for keyword in call.keywords)]
                 if isinstance(value, ast.Constant) and isinstance(value.value, str)]  # fmt: skip
        texts = name in ("read_text", "write_text") or (
            name in ("open", "NamedTemporaryFile")
            and owner not in ("Image", "os")
            and not any("b" in mode for mode in modes)
        )
        # Functions of andfast's own by these names have one encoding.
        if texts and "encoding" not in given and not (name.endswith("_text") and isinstance(call.func, ast.Name)):
            yield call.lineno


def test_no_text_is_read_or_written_in_the_locale_s_encoding():
    root = Path(files.__file__).parents[2]
    found = [
        f"{path.relative_to(root)}:{line}"
        for folder in ("andfast", "bench", "studies")
        for path in sorted((root / folder).rglob("*.py"))
        for line in calls_without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found
