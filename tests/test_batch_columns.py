"""These tests hold what stands in metadata.jsonl beside the record itself: a row's own columns, what tells of the mask,
and the measures of the label. Columns never decide what is composed. Bad rows are announced when they happen, and a run
says how fast it was."""

import json
import sys

import numpy as np
import pytest
from composition_files import FAST, row, tree, write_manifest, write_scans
from fake_model import FakeModel
from medical_files import dicom_file
from PIL import Image

import sd21
from composition import Settings, cli
from composition.runs import record
from composition.runs.batch import run_batch
from composition.runs.columns import LONGEST_LIST, LONGEST_TEXT, MOST_COLUMNS, OURS
from composition.runs.layouts import Export
from composition.runs.manifest import read_manifest
from composition.scans.errors import RowError

QUICK = Settings(steps=4, start=2, preserve_background_until=1, inversion="naive")


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path)


def run(folder, rows, out="out", **keywords):
    manifest = write_manifest(folder / "manifest.jsonl", rows)
    return run_batch(manifest, folder / out, lambda: FakeModel(64), QUICK, quiet=True, **keywords)


def lines(folder, out="out") -> list[dict]:
    return [json.loads(line) for line in (folder / out / "metadata.jsonl").read_text().splitlines()]


def bad(folder) -> list[str]:
    return [error.error for error in read_manifest(folder / "manifest.jsonl", QUICK)[1].values()]


def test_a_rows_own_columns_pass_through(scans):
    own = {"patient": "é 7", "age": 61.5, "benign": False, "sites": ["a", "b"], "none": None, "split": "test"}
    summary = run(scans, [row(0) | own, row(1)])
    first, second = lines(scans)
    assert {name: first[name] for name in own} == own
    assert {name: second[name] for name in own} == dict.fromkeys(own)  # every line has every column
    assert summary.columns == tuple(own) and "Columns of the rows' own: patient, age" in str(summary)


def test_a_record_has_its_fields_and_columns_and_no_others(scans):
    """columns.py refuses a user's column that would take the place of one of these."""
    run(scans, [row(0)])
    assert set(lines(scans)[0]) == {*record.FIELDS, *OURS, "class"}


def test_the_columns_of_the_mask(scans):
    run(scans, [row(0), row(1, **{"class": "glioma"})], export=Export(label_name="meningioma"))
    for entry, name in zip(lines(scans), ("meningioma", "glioma"), strict=True):
        mask = np.asarray(Image.open(scans / "out" / entry["mask_file_name"])) > 0
        y, x = np.nonzero(mask)
        assert entry["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        assert (entry["area"], entry["area_mm2"], entry["class"]) == (mask.sum(), None, name)
        assert entry["label"] == {measure: entry[f"label_{measure}"] for measure in entry["label"]}


def test_the_area_in_square_millimetres(scans):
    pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    values = np.asarray(Image.open(scans / "s0.png")).astype(np.int16)
    dicom_file(scans / "s0.dcm", values, PixelSpacing=[0.5, 0.25])
    run(scans, [row(0, background="s0.dcm")])
    (entry,) = lines(scans)
    assert entry["area"] > 0 and entry["area_mm2"] == entry["area"] * 0.125


CHANGES = [
    ([{"age": 1}, {"age": 1}], [{"age": 2}, {"age": 1}]),
    ([{"age": 1}, {"age": 1}], [{"age": 1.0}, {"age": 1}]),  # equal to Python, and other bytes
    ([{"age": 1}, {}], [{}, {}]),
    ([{}, {}], [{"split": "test"}, {"split": "train"}]),
    ([{"a": 1, "b": 2}, {}], [{"b": 2, "a": 1}, {}]),
]


@pytest.mark.parametrize(("before", "after"), CHANGES)
def test_changed_columns_give_the_files_of_a_new_run_without_composing(scans, monkeypatch, before, after):
    rows = [[row(n) | own for n, own in enumerate(columns)] for columns in (before, after)]
    run(scans, rows[0])
    run(scans, rows[1], out="expected")
    monkeypatch.setattr("composition.runs.batch.compose", lambda *_, **__: pytest.fail("it was composed again"))
    summary = run(scans, rows[1])
    assert (summary.written, summary.kept, summary.composed) == (0, 2, 0)
    assert tree(scans / "out") == tree(scans / "expected")


def test_another_name_of_the_class_does_not_compose_again(scans, monkeypatch):
    run(scans, [row(0)])
    run(scans, [row(0)], out="expected", export=Export(label_name="cyst"))
    monkeypatch.setattr("composition.runs.batch.compose", lambda *_, **__: pytest.fail("it was composed again"))
    run(scans, [row(0)], export=Export(label_name="cyst"))
    assert tree(scans / "out") == tree(scans / "expected")


def test_a_table_never_tells_of_other_columns(scans, monkeypatch):
    """A run that is stopped between the new record and the table leaves no table, and the next one writes it."""
    run(scans, [row(0), row(1)])
    monkeypatch.setattr("composition.runs.batch._write_tables", lambda *_: sys.exit(9))
    with pytest.raises(SystemExit):
        run(scans, [row(0, age=1), row(1)])
    assert not (scans / "out" / "metadata.jsonl").exists()
    monkeypatch.undo()
    run(scans, [row(0, age=1), row(1)])
    run(scans, [row(0, age=1), row(1)], out="expected")
    assert tree(scans / "out") == tree(scans / "expected")


def test_an_interrupted_row_does_not_stop_the_next_run(scans, monkeypatch):
    """Ctrl-C after the pictures and before the record: they would be taken for a user's."""
    real = record.results

    def stop(_):
        raise KeyboardInterrupt

    monkeypatch.setattr(record, "results", stop)
    with pytest.raises(KeyboardInterrupt):
        run(scans, [row(0)])
    monkeypatch.setattr(record, "results", real)
    assert tree(scans / "out") == {}
    assert run(scans, [row(0)]).written == 1


REFUSED = [
    ({"stored": 1}, "the column 'stored' would take the place of a column that batch writes itself; rename it"),
    ({"bbox": 1}, "the column 'bbox' would take the place"),
    ({"label_contrast": 1}, "the column 'label_contrast' would take the place"),
    ({"mask": "m"}, "the column 'mask' would take the place"),
    ({"source_file_name": "a.png"}, "dataset libraries take columns whose names end in file_name for images"),
    ({"": 1}, "its name is a text in one line of 1 to 64 characters"),
    ({"n" * 65: 1}, "its name is a text in one line of 1 to 64 characters"),
    ({"a\nb": 1}, "its name is a text in one line"),
    ({"\ud83d": 1}, "its name is a text in one line"),
    ({"a": {"b": 1}}, "the column 'a': expected a text, a number, true or false, null, or a list"),
    ({"a": [[1]]}, "the column 'a': expected a text"),
    ({"a": [None]}, "the column 'a': expected a text"),
    ({"a": [1, "b"]}, "is a list of a number and a text; expected values of one kind"),
    ({"a": [1] * (LONGEST_LIST + 1)}, "is a list of 101 values, expected 100 at most"),
    ({"a": "x" * (LONGEST_TEXT + 1)}, "has 1001 characters, expected 1000 at most"),
    ({"a": "\ud83d"}, "the column 'a' is no text"),
    ({"a": float("nan")}, "expected a finite number within 64 bits"),
    ({"a": 2**63}, "expected a finite number within 64 bits"),
    ({"a": 10**400}, "expected a finite number within 64 bits"),
    ({f"c{n}": n for n in range(MOST_COLUMNS + 1)}, "the row has 65 columns of its own, expected 64 at most"),
    ({"split": "fold1"}, "split is one of train, validation, val, test, got 'fold1'"),
    ({"split": ["test"]}, "split is one of"),
    ({"class": 7}, "the name of a class is a text in one line of 1 to 64 characters, got 7"),
    ({"class": " "}, "the name of a class is a text"),
    ({"known": "a text"}, "the column 'known' holds a text here and a number in line 1; a column has one kind"),
    ({"known": [1]}, "holds a list, each a number here and a number in line 1"),
]


@pytest.mark.parametrize(("own", "message"), REFUSED)
def test_a_column_that_nobody_could_read_costs_its_row(scans, own, message):
    write_manifest(scans / "manifest.jsonl", [row(0, known=1), row(1) | own, row(2, known=2.5)])
    rows, _ = read_manifest(scans / "manifest.jsonl", QUICK)
    (error,) = bad(scans)
    assert [one.id for one in rows] == ["case0", "case2"] and message in error and len(error) < 600


def test_a_bad_row_gives_no_column_its_kind(scans):
    write_manifest(scans / "manifest.jsonl", [row(0, age="x", other={}), row(1, age=1), row(2, age=2)])
    assert len(bad(scans)) == 1


def test_a_key_that_is_nearly_another_is_told_once(scans):
    rows = [row(0, pid="a", labels="b"), row(1, pid="a", widnow=[40, 80]), row(2, widnow=[40, 80])]
    with pytest.warns(UserWarning) as told:
        run_batch(write_manifest(scans / "m.jsonl", rows), scans / "out", lambda: FakeModel(64), QUICK)
    assert [str(one.message) for one in told] == [
        "row 1: the key 'labels' is taken as a column of its own; did you mean 'label'?",
        "row 2: the key 'widnow' is taken as a column of its own; did you mean 'window'?",
    ]


def test_a_file_that_is_no_manifest_makes_no_folder(scans):
    with pytest.raises(RowError, match=r"s0\.png is no manifest, JSON lines: line 1: not UTF-8"):
        run_batch(scans / "s0.png", scans / "out", lambda: pytest.fail("loaded"), QUICK)
    assert not (scans / "out").exists()


@pytest.mark.parametrize("value", [{"label_name": ""}, {"label_name": "a\nb"}, {"dataset_id": 0}, {"dataset_id": 1000}])
def test_options_that_name_nothing(value):
    with pytest.raises(ValueError, match=f"^{next(iter(value))}"):
        Export(**value)


def command(scans, monkeypatch, capsys, *options) -> tuple[str, str]:
    monkeypatch.setattr(sd21, "load", lambda *_, **__: FakeModel(64))
    Image.new("L", (80, 60)).save(scans / "black.png")
    rows = [row(0), row(1, object="none.png"), row(2, background="black.png"), "{no"]
    manifest = write_manifest(scans / "manifest.jsonl", rows)
    arguments = ["batch", str(manifest), f"--out={scans / 'out'}", *FAST, *options]
    assert cli.main(arguments) == 1
    return capsys.readouterr()


def test_bad_rows_are_announced_once_and_when_they_happen(scans, monkeypatch, capsys):
    output, told = command(scans, monkeypatch, capsys)
    found = [line for line in told.replace("\r", "\n").splitlines() if line.startswith("bad row: ")]
    assert [line[:17] for line in found] == ["bad row: line 2, ", "bad row: line 4: ", "bad row: line 3, "]
    assert "none.png" in found[0] and "case2: BlankError" in found[2]
    assert told.index("bad row: line 3") < told.index("error: 3 of 4 rows")
    assert "Now: 1 composites in " in output and " an hour, start-up not counted" in output
    assert "\n  contrast (1 is right): median " in output
    assert "\n  contrast_composite (grey levels of 255): median " in output
    assert 'load_dataset("imagefolder", data_files=' in output


def test_quiet_means_no_announcement(scans, monkeypatch, capsys):
    output, told = command(scans, monkeypatch, capsys, "-q")
    assert output == "" and told.splitlines() == [
        f"error: 3 of 4 rows failed or were refused, see {scans / 'out' / 'errors.jsonl'}"
    ]


def test_files_hold_no_times(scans):
    """The rate is printed and not written: two runs give the same bytes."""
    run(scans, [row(0)])
    run(scans, [row(0)], out="again")
    assert tree(scans / "out") == tree(scans / "again")
