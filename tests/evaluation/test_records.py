"""What an evaluation keeps image by image."""

import pytest

from andfast.evaluation.records import Digests, EvaluationRecordError, Record, Records

OLD = Digests("model 1", "images 1", "settings 1")


def record(image="a", digests=OLD, value=1.5):
    return Record("set", image, "net", digests, {"psnr_y": value, "niqe": None}, {"down": 0.5})


def test_records_survive(tmp_path):
    records = Records(tmp_path / "run")
    records.add(record("a"))
    records.add(record("b", value=0.1))
    again = Records(tmp_path / "run")
    assert again.get("set", "a", "net", OLD) == record("a")
    assert again.get("set", "b", "net", OLD).scores == {"psnr_y": 0.1, "niqe": None}
    assert again.get("set", "c", "net", OLD) is None
    assert again.get("set", "a", "other net", OLD) is None
    assert again.changed("set", "a", "net", OLD) == []
    assert again.changed("set", "c", "net", OLD) == []


@pytest.mark.parametrize(
    ("field", "what"), [("model", "the model"), ("images", "the images"), ("settings", "the settings")]
)
def test_what_changed_is_known(tmp_path, field, what):
    records = Records(tmp_path)
    records.add(record())
    new = OLD._replace(**{field: "2"})
    assert records.get("set", "a", "net", new) is None
    assert records.changed("set", "a", "net", new) == [what]
    records.add(record(digests=new, value=3.0))
    for each in (records, Records(tmp_path)):
        assert each.get("set", "a", "net", new).scores["psnr_y"] == 3
        assert each.get("set", "a", "net", OLD).scores["psnr_y"] == 1.5  # what was before is still there


def test_a_line_that_was_being_written_is_cut_off(tmp_path):
    records = Records(tmp_path)
    records.add(record("a"))
    whole = records.path.read_bytes()
    records.add(record("b"))
    records.path.write_bytes(records.path.read_bytes()[:-10])
    again = Records(tmp_path)
    assert again.get("set", "a", "net", OLD) is not None
    assert again.get("set", "b", "net", OLD) is None
    assert again.path.read_bytes() == whole
    again.add(record("b"))
    assert Records(tmp_path).get("set", "b", "net", OLD) is not None


@pytest.mark.parametrize("line", ["{}", "[1]", "nothing", '{"data": "set", "digests": {"model": "1"}}'])
def test_damaged_lines_are_named(tmp_path, line):
    Records(tmp_path).add(record())
    with (tmp_path / "images.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(EvaluationRecordError, match=r"images\.jsonl: line 2 is damaged .*; delete the line"):
        Records(tmp_path)
