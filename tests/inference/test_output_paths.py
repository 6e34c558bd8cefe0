"""Results beside the photographs: what is an earlier result and what an original."""

import numpy as np
import pytest
from PIL import Image
from upscaling_models import nearest, picture

from andfast import upscale
from andfast.inference.output_paths import RECORD_FILE, plan_outputs
from andfast.models import save_model
from andfast.utils.command_line import UsageError


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    save_model(nearest(), path)  # of scale 2
    return path


@pytest.fixture
def run(model_file, capsys):
    """Run the command; returns its exit status, the summary and the error stream."""

    def run(*arguments):
        status = upscale.main([str(argument) for argument in (*arguments, "--model", model_file, "--workers", 0)])
        message = capsys.readouterr()
        return status, message.out.splitlines()[-1] if message.out else "", message.err

    return run


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder):
    return sorted(contents(folder).keys() - {RECORD_FILE})


def size(path):
    with Image.open(path) as image:
        return image.size


def test_the_same_command_goes_on_beside_the_photographs(tmp_path, run):
    for name in ("a.jpg", "sub/b.jpg"):
        picture(tmp_path / name)
    assert run(tmp_path, "--output", tmp_path)[0] == 0
    before = contents(tmp_path)
    status, summary, _ = run(tmp_path, "--output", tmp_path)
    assert (status, contents(tmp_path)) == (0, before)
    assert summary.startswith("0 of 2 images upscaled")
    assert "2 there already" in summary
    # A new photograph, and a result that an interrupted run had not made yet.
    picture(tmp_path / "new.jpg")
    (tmp_path / "a.png").unlink()
    status, summary, _ = run(tmp_path, "--output", tmp_path)
    assert status == 0
    assert summary.startswith("2 of 3 images upscaled")
    assert {name: contents(tmp_path)[name] for name in before if name != RECORD_FILE}.items() <= before.items()
    assert names(tmp_path) == ["a.jpg", "a.png", "new.jpg", "new.png", "sub/b.jpg", "sub/b.png"]


def test_made_again_are_results_and_no_originals(tmp_path, run):
    picture(tmp_path / "a.jpg")
    assert run(tmp_path, "--output", tmp_path)[0] == 0
    before = contents(tmp_path)
    Image.new("RGB", size(tmp_path / "a.png")).save(tmp_path / "a.png")
    assert run(tmp_path, "--output", tmp_path, "--overwrite")[0] == 0
    assert contents(tmp_path) == before
    # Twice the size of b.jpg, but none of ours.
    picture(tmp_path / "b.jpg", 8, 9)
    picture(tmp_path / "b.png", 16, 18)
    before = contents(tmp_path)
    status, _, error = run(tmp_path, "--output", tmp_path, "--overwrite")
    assert (status, contents(tmp_path)) == (2, before)
    assert "b.png, which is there and may be an original; remove it, or choose another --output" in error
    status, _, error = run(tmp_path, "--output", tmp_path)
    assert (status, contents(tmp_path)) == (0, before)
    assert "passed over: 1 with the place and the size of an earlier result (b.png)" in error


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_an_original_beside_a_photograph_is_named(tmp_path, run, more):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "a.png")
    before = contents(tmp_path)
    for given in (tmp_path, tmp_path / "a.jpg"):
        status, _, error = run(given, "--output", tmp_path, *more)
        assert (status, contents(tmp_path)) == (2, before)
        assert "a.jpg would be written to" in error
        assert "a.png, which is there and may be an original: it is not 2 times the size; rename one" in error


def test_files_and_other_formats_beside_the_photographs(tmp_path, run):
    picture(tmp_path / "a.jpg")
    picture(tmp_path / "b.png")
    for times in (1, 0):
        status, summary, _ = run(tmp_path / "a.jpg", "--output", tmp_path)
        assert (status, summary[:12]) == (0, f"{times} of 1 image")
        status, summary, _ = run(tmp_path / "b.png", "--output", tmp_path, "--format", "jpeg")
        assert (status, summary[:12]) == (0, f"{times} of 1 image")
    status, _, error = run(tmp_path / "a.jpg", "--output", tmp_path, "--format", "same")
    assert status == 2
    assert "a.jpg is an input and would be overwritten" in error


def test_known_results_are_no_inputs_for_other_formats_and_folders(tmp_path, run):
    picture(tmp_path / "in" / "a.jpg")
    for output, more, made in (("in", [], "a.png"), ("in", ["--format", "tiff"], "a.tif"), ("out", [], "a.png")):
        status, summary, error = run(tmp_path / "in", "--output", tmp_path / output, *more)
        assert (status, error) == (0, "")
        assert summary.startswith("1 of 1 image")
        assert (tmp_path / output / made).exists()


def test_the_factor_asked_for_counts(tmp_path, run):
    picture(tmp_path / "a.jpg", 10, 12)
    for times in (1, 0):
        status, summary, _ = run(tmp_path, "--output", tmp_path, "--output-scale", 1.5)
        assert (status, summary[:12]) == (0, f"{times} of 1 image")
    assert size(tmp_path / "a.png") == (18, 15)
    assert run(tmp_path, "--output", tmp_path)[0] == 2  # twice the size is something else


def test_at_a_factor_of_1_only_listed_files_are_results(tmp_path, run):
    """An original beside the image has the size of a result."""
    picture(tmp_path / "a.jpg", 10, 12)
    for times in (1, 0):
        status, summary, _ = run(tmp_path, "--output", tmp_path, "--output-scale", 1)
        assert (status, summary[:12]) == (0, f"{times} of 1 image")
    assert size(tmp_path / "a.png") == (12, 10)
    (tmp_path / RECORD_FILE).unlink()
    status, _, error = run(tmp_path, "--output", tmp_path, "--output-scale", 1)
    assert status == 2
    assert "a.png, which is there and may be an original; remove it" in error


def test_results_too_large_to_be_decoded_are_recognised(tmp_path, run, monkeypatch):
    picture(tmp_path / "a.jpg")
    assert run(tmp_path, "--output", tmp_path)[0] == 0
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 200)  # an error for more than twice as many
    assert run(tmp_path, "--output", tmp_path)[0] == 0
    assert Image.MAX_IMAGE_PIXELS == 200


def test_a_record_that_is_none_is_no_obstacle(tmp_path, run):
    picture(tmp_path / "a.jpg")
    for text in ("", "[]", '{"results": 3}'):
        (tmp_path / RECORD_FILE).write_text(text)
        assert run(tmp_path, "--output", tmp_path)[0] == 0


def test_elsewhere_there_is_no_record(tmp_path, run):
    picture(tmp_path / "in" / "a.jpg")
    for output in (tmp_path / "out", tmp_path / "in" / "large"):
        for times in (1, 0):
            status, summary, _ = run(tmp_path / "in", "--output", output)
            assert (status, summary[:12]) == (0, f"{times} of 1 image")
        assert [path.name for path in output.iterdir()] == ["a.png"]


def test_an_input_may_lie_in_the_folder_of_results(tmp_path):
    picture(tmp_path / "in" / "a.jpg")
    assert plan_outputs([tmp_path / "in"], tmp_path).pairs == [(tmp_path / "in" / "a.jpg", tmp_path / "a.png")]


def test_suffixes_of_one_format_keep_it(tmp_path):
    pixels = Image.fromarray(np.zeros((4, 4, 3), np.uint8))
    for name, kind in (("a.jfif", "JPEG"), ("b.JPE", "JPEG"), ("c.apng", "PNG"), ("d.pnm", "PPM"), ("e.TIF", "TIFF")):
        pixels.save(tmp_path / name, kind)
    found = plan_outputs([tmp_path], tmp_path / "out", "same").pairs
    assert [target.name for _, target in found] == ["a.jpg", "b.jpg", "c.png", "d.png", "e.TIF"]
    pixels.save(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match=r"a\.jfif and .*a\.jpg would both be written to"):
        plan_outputs([tmp_path], tmp_path / "out", "same")


def test_what_was_passed_over_is_told_at_the_end(tmp_path, run):
    picture(tmp_path / "in" / "a.jpg")
    (tmp_path / "in" / "i.gif").write_bytes(b"")
    _, _, error = run(tmp_path / "in", "--output", tmp_path / "out")
    assert error == "passed over: 1 of a format that is not read (i.gif)\n"
    (tmp_path / "in" / "a.jpg").unlink()
    status, _, error = run(tmp_path / "in", "--output", tmp_path / "out")
    assert status == 2
    assert "in: no images (.apng" in error
    assert "i.gif" in error
