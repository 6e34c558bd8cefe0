"""YAML as people, and programs of Windows, write it."""

import math
import os

import pytest
import yaml

from andfast.utils.yaml_files import YamlError, dump_yaml, load_yaml, read_yaml

TEXT = "a: 1e-4 # \u8bad\u7ec3\nb: {c: [1, \u00e9]}\n"
VALUE = {"a": 1e-4, "b": {"c": [1, "\u00e9"]}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-1e4", -1e4),
        ("1.5e+3", 1500.0),
        (".5", 0.5),
        ("1_000.5", 1000.5),
        ("1_000", 1000),
        (".inf", math.inf),
        ("yes", True),
        ("off", False),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("1e", "1e"),
        ("e5", "e5"),
        ("1.2.3", "1.2.3"),
        ("'1e-4'", "1e-4"),
    ],
)
def test_words_stand_for_what_people_mean(text, value):
    found = load_yaml(text)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("encoding", "mark"),
    [("utf-8", b""), ("utf-8-sig", b""), ("utf-16", b""), ("utf-16-be", b"\xfe\xff"), ("utf-16-le", b"\xff\xfe")],
)
def test_every_encoding_of_unicode_is_read(tmp_path, encoding, mark, ends):
    (tmp_path / "a.yaml").write_bytes(mark + TEXT.replace("\n", ends).encode(encoding))
    assert read_yaml(tmp_path / "a.yaml") == VALUE


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a: 1\n# \u8bad\u7ec3\n".encode("gbk"), ["line 2", "UTF-8"]),
        (b"\x89PNG\r\n\x1a\n\0", ["line 1", "UTF-8"]),
        (b"a: 1\0", ["not YAML"]),
        ("a: 1\n".encode("utf-16-le"), ["save the file as UTF-8"]),
        ("a: 1\n".encode("utf-16-be"), ["save the file as UTF-8"]),
        ("a: 1\n".encode("utf-32"), ["save the file as UTF-8"]),
        (b"a:\n\tb: 1\n", ["line 2", r"'\t'"]),
        (b"a: [1, 2\nb: 1\n", ["line 2"]),
        (b"a: 1\nb: 2\na: 3\n", ["line 3", "a stands twice"]),
        (b"a: &b\n  c: [1, *b]\n", ["a.c.1 holds itself"]),
        (b"[" * 5000, ["nested without end"]),
        (b"a: 1\nb:\n  c: 2\n  d: 3\n  c: 4\n", ["line 5", "c stands twice"]),
    ],
)
def test_what_is_none_is_refused_with_its_line(tmp_path, content, words):
    path = tmp_path / "a.yaml"
    path.write_bytes(content)
    with pytest.raises(YamlError) as error:
        read_yaml(path)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_keys_may_come_again_by_a_merge():
    assert load_yaml("x: &x {a: 1, b: 2}\ny: {<<: *x, a: 3}\n")["y"] == {"a": 3, "b": 2}


def test_what_is_written_reads_back_and_is_plain_ascii():
    settings = {
        "name": os.fsdecode(b"r\xe9sultats"),
        "words": ["\u8bad", "1e-4", "1e5", "2020-01-01", "yes", "null", "", " a ", "a: b", "#", "C:"],
        "numbers": [1e-05, 1e22, 5, math.inf, True, None],
    }
    text = dump_yaml(settings)
    assert load_yaml(text) == settings
    assert text.isascii()
    plain = {key: value for key, value in settings.items() if key != "numbers"}
    assert yaml.safe_load(dump_yaml(plain)) == plain
    assert list(load_yaml(text)) == list(settings)
