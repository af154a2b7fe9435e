"""`batch` is tested here: kills at any moment, sharing over processes, bad rows, and a layout that dataset libraries
read."""

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from composition_files import FAST, row, tree, write_manifest, write_scans, write_tiny_model
from fake_model import FakeModel
from PIL import Image

from composition import Settings
from composition.runs.batch import run_batch
from composition.runs.limits import Limits
from composition.runs.manifest import read_manifest
from composition.runs.ranks import Ranks
from sd21.folders import FolderError

ROOT = Path(__file__).parent.parent
QUICK = Settings(steps=4, start=2, preserve_background_until=1, inversion="naive")
BAD = "{not json"
KINDS = ("images", "png"), ("masks", "png"), ("records", "json")  # the files of a row, and their suffixes


def start(command: list, **keywords) -> subprocess.Popen:
    """Start on one thread, as torchrun does: equal bytes are promised for equal numbers of threads."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, *map(str, command)], env=environment, text=True, **keywords)


def communicate(process: subprocess.Popen) -> tuple[str, str]:
    try:
        return process.communicate(timeout=900)
    except subprocess.TimeoutExpired:
        process.terminate()  # torchrun takes its own processes along
        raise


def finish(process: subprocess.Popen) -> str:
    """What it printed. Two rows of the manifest end in errors.jsonl, so a whole run ends with status 1."""
    output, errors = communicate(process)
    assert process.returncode == 1, errors
    return output


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """A folder with a manifest of three good rows, a bad one and one that is refused, a checkpoint, and their result in
    `undisturbed`."""
    folder = write_scans(tmp_path_factory.mktemp("batch"))
    Image.fromarray(np.tri(60, 80, dtype=np.uint8)).save(folder / "half.png")  # cuts a disc in two
    refused = row(3, user_box=None, user_mask="half.png", settings={"fit": "box"})
    write_manifest(folder / "manifest.jsonl", [row(0), row(1), BAD, refused, row(2)])
    write_tiny_model(folder / "model")
    finish(start(["-m", "composition", *batch(folder), "--out", folder / "undisturbed"], stdout=subprocess.PIPE))
    return folder


def batch(folder: Path) -> list:
    """A batch on random weights, of which nobody expects a tumour."""
    given = ["batch", folder / "manifest.jsonl", "--model", folder / "model", "--device", "cpu"]
    return [*given, *FAST, "--min-contrast", "none"]


@pytest.mark.slow
def test_the_files_of_an_undisturbed_run(work):
    names = [f"{kind}/case{n}.{suffix}" for kind, suffix in KINDS for n in range(3)]
    assert set(tree(work / "undisturbed")) == {*names, "metadata.jsonl", "errors.jsonl"}
    _, refused = (json.loads(line) for line in (work / "undisturbed" / "errors.jsonl").read_text().splitlines())
    assert refused["line"] == 4 and refused["error"].endswith("or --max-clipped none to keep it")


@pytest.mark.slow
def test_a_kill_before_any_file_leads_to_the_same_files(work, tmp_path):
    script = Path(__file__).parent / "kill_at_every_moment.py"
    process = start([script, tmp_path, *batch(work)[1:]], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    output, errors = communicate(process)
    assert process.returncode == 0, errors
    moments = int(output)
    expected = tree(work / "undisturbed")
    assert moments - 1 == len(expected)  # before every file a run was killed
    for moment in range(1, moments + 1):
        assert tree(tmp_path / str(moment)) == expected, f"killed before file {moment}"


@pytest.mark.slow
def test_a_kill_from_outside_and_the_same_command_again(work, tmp_path):
    command = ["-m", "composition", *batch(work), "--out", tmp_path / "out"]
    process = start(command, stderr=subprocess.DEVNULL)
    while not list((tmp_path / "out").glob("records/case*.json")) and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -9
    assert not (tmp_path / "out" / "metadata.jsonl").exists()  # it was killed on the way, not at its end
    output = finish(start(command, stdout=subprocess.PIPE))
    assert tree(tmp_path / "out") == tree(work / "undisturbed")
    assert "0 there already" not in output  # what was done was not done again


@pytest.mark.slow
def test_two_processes_do_every_row_once_and_give_the_same_files(work, tmp_path):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--", "composition"]
    process = start([*torchrun, *batch(work), "--out", tmp_path / "out"], stdout=subprocess.PIPE)
    output, _ = communicate(process)
    # Both print one summary together; had they not met, each would have summed up its own rows.
    assert output.count("rows:") == 1 and output.startswith(
        "5 rows: 3 written, 0 there already, 2 bad (1 of them refused: 1 by max_clipped). "
    ), output
    assert tree(tmp_path / "out") == tree(work / "undisturbed")


@pytest.mark.slow
def test_processes_that_torchrun_restarts_begin_anew(work, tmp_path):
    script = Path(__file__).parent / "die_once.py"
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1", "--"]
    process = start([*torchrun, script, *batch(work), "--out", tmp_path / "out"], stderr=subprocess.PIPE)
    _, errors = communicate(process)
    assert "exitcode: -9" in errors and tree(tmp_path / "out") == tree(work / "undisturbed"), errors


def run(folder: Path, rows: list, settings: Settings = QUICK, **keywords):
    manifest = write_manifest(folder / "manifest.jsonl", rows)
    return run_batch(manifest, folder / "out", lambda: FakeModel(64), settings, quiet=True, **keywords)


def records(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "out" / "metadata.jsonl").read_text().splitlines()]


def test_a_finished_run_does_nothing_again_and_a_changed_one_what_changed(tmp_path):
    rows = [row(n) for n in range(4)]
    write_scans(tmp_path)
    assert (run(tmp_path, rows).written, run(tmp_path, rows).kept) == (4, 4)
    rows[1] = row(1, prompt="another prompt")
    rows.append(row(4))
    summary = run(tmp_path, rows)
    assert (summary.written, summary.kept) == (2, 3)
    assert [record["prompt"] for record in records(tmp_path)][1] == "another prompt"
    Image.open(tmp_path / "s0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "s0.png")
    assert run(tmp_path, rows).written == 3  # cases 0, 2 and 4
    assert run(tmp_path, rows, Settings(steps=4, start=1, inversion="naive")).written == 5
    (tmp_path / "out" / "masks" / "case2.png").unlink()
    assert run(tmp_path, rows, Settings(steps=4, start=1, inversion="naive")).written == 1
    assert run(tmp_path, rows, method="copy-paste").written == run(tmp_path, rows).written == 5
    damaged = tmp_path / "out" / "records" / "case1.json"
    damaged.write_text("")
    with pytest.warns(UserWarning, match=r"case1\.json is damaged and will be made again"):
        assert run(tmp_path, rows).written == 1


def test_a_shared_background_is_inverted_once(tmp_path):
    rows = [row(n) for n in range(6)]
    write_scans(tmp_path)
    summary = run(tmp_path, rows)
    # Naive inversion up to start = 2 costs 2 rows and its round trip as many; 6 rows have 2 backgrounds.
    assert (summary.reused, summary.saved_rows) == (4, 4 * 4)
    shutil.rmtree(tmp_path / "out")
    run(tmp_path, rows, cache=tmp_path / "cache")
    before = tree(tmp_path / "out")
    shutil.rmtree(tmp_path / "out")
    assert run(tmp_path, rows, cache=tmp_path / "cache").reused == 2 * 6
    assert tree(tmp_path / "out") == before


def test_bad_rows_are_reported_and_the_others_go_on(tmp_path):
    write_scans(tmp_path)
    Image.new("L", (80, 60)).save(tmp_path / "black.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG but no more")
    cases = [
        (BAD, "not a JSON object"),
        ("[" * 100_000, "not a JSON object"),
        ("[1, 2]", "expected a JSON object, got list"),
        (row(2, prompt=None), "prompt"),
        (row(3, colour={"red": 1}), "the column 'colour': expected a text, a number"),
        (row(4, id="../up"), "id names files"),
        (row(5, id="CASE0"), "taken by line 1"),
        (row(6, background="none.png"), "there is no such file"),
        (row(7, user_mask="m.png"), "either as a user mask or as a user box"),
        (row(8, user_box=None), "either as a user mask or as a user box"),
        (row(9, user_box=[0, 0, 200, 10]), "does not lie wholly on"),
        (row(10, user_box="1,2,3,4"), "four whole numbers"),
        (row(11, background="black.png"), "blank"),
        (row(12, object="broken.png"), "cannot be read"),
        (row(13, object_mask="black.png"), "the mask is empty"),
        (row(14, settings={"start": 9}), "start is a whole number from 1 to 4"),
        (row(15, settings={"speed": 9}), "unknown settings: 'speed'; expected some of steps"),
        (row(16, settings={"tolerance": "low"}), "tolerance is a number, got 'low', a str"),
    ]
    good = [row(0), "", row(1, settings={"guidance_scale": 1.0})]
    summary = run(tmp_path, [*good, *(entry for entry, _ in cases)])
    assert (summary.rows, summary.written, summary.bad) == (len(cases) + 2, 2, len(cases))
    reported = [json.loads(line) for line in (tmp_path / "out" / "errors.jsonl").read_text().splitlines()]
    assert [entry["line"] for entry in reported] == list(range(4, len(cases) + 4))
    for entry, (_, message) in zip(reported, cases, strict=True):
        assert message in entry["error"]
    assert [record["settings"]["guidance_scale"] for record in records(tmp_path)] == [2.5, 1.0]
    assert run(tmp_path, good).bad == 0
    assert not (tmp_path / "out" / "errors.jsonl").exists()


@pytest.fixture
def half(tmp_path):
    """Limits that two of four rows keep, by their contrasts. The scans are in tmp_path, and nothing is composed yet."""
    write_scans(tmp_path)
    run(tmp_path, [row(n) for n in range(4)], limits=Limits.off())
    contrasts = [entry["label"]["contrast"] for entry in records(tmp_path)]
    shutil.rmtree(tmp_path / "out")
    return Limits(min_contrast=float(np.median(contrasts)))


def errors(folder: Path) -> list[dict]:
    path = folder / "out" / "errors.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_results_do_not_lie_beside_their_inputs(tmp_path):
    scans = write_scans(tmp_path / "scans")
    files = {name: f"scans/{row(0)[name]}" for name in ("background", "object", "object_mask")}
    manifest = write_manifest(tmp_path / "m.jsonl", [row(0, **files)])
    before = tree(tmp_path)
    with pytest.raises(FolderError, match="holds inputs, and what reads them would read the results too"):
        run_batch(manifest, scans, lambda: pytest.fail("loaded"), Settings(), quiet=True)
    assert tree(tmp_path) == before


def test_a_row_whose_label_is_not_true_is_refused_and_leaves_no_file(tmp_path, half):
    summary = run(tmp_path, [row(n) for n in range(4)], limits=half)
    kept = [number for number in range(4) if (tmp_path / "out" / "records" / f"case{number}.json").exists()]
    assert (len(kept), summary.rows, summary.written, summary.bad, summary.refused) == (2, 4, 2, 2, 2)
    assert summary.refused_by == {"min_contrast": 2}
    names = {f"{kind}/case{n}.{end}" for n in kept for kind, end in KINDS}
    assert set(tree(tmp_path / "out")) == names | {"metadata.jsonl", "errors.jsonl"}
    assert [entry["line"] for entry in errors(tmp_path)] == [n + 1 for n in range(4) if n not in kept]
    for entry in errors(tmp_path):
        assert re.match(
            r"refused: the tumour keeps 0\.\d\d of the contrast of its own scan, expected 0\.\d+ or more: see that",
            entry["error"],
        )
        assert entry["error"].endswith("or --min-contrast none to keep it")
    contrasts = [entry["label"]["contrast"] for entry in records(tmp_path)]
    assert (summary.labels["contrast"]["least"], summary.labels["contrast"]["median"]) == (
        min(contrasts),
        np.median(contrasts),
    )
    assert min(contrasts) >= half.min_contrast


def test_a_row_may_fall_short_of_several_limits(tmp_path):
    write_scans(tmp_path)
    limits = Limits(min_contrast=2, max_clipped=0, min_cells=99, min_correlation=1, max_grey_shift=0)
    summary = run(tmp_path, [row(0)], limits=limits)
    assert summary.refused == 1 and summary.labels == {} and summary.worst_error is None
    assert summary.refused_by == dict.fromkeys(("min_contrast", "min_cells", "min_correlation", "max_grey_shift"), 1)
    assert "1 bad (1 of them refused: 1 by min_contrast, 1 by min_cells, " in str(summary)
    (entry,) = errors(tmp_path)
    assert "of its latent cells, expected 99 or more: see that --focus is not scan" in entry["error"]


def test_other_limits_refuse_from_the_record_or_compose_again(tmp_path, monkeypatch, half):
    rows = [row(n) for n in range(4)]
    run(tmp_path, rows, limits=half)
    refused = tree(tmp_path / "out")

    loose = run(tmp_path, rows, limits=Limits.off())
    assert (loose.kept, loose.written, loose.bad) == (2, 2, 0) and errors(tmp_path) == []
    written = tree(tmp_path / "out")
    assert run(tmp_path, rows).kept == 4 and tree(tmp_path / "out") == written  # limits are not in the files

    monkeypatch.setattr("composition.runs.batch.compose", lambda *_, **__: pytest.fail("a kept row was composed again"))
    strict = run(tmp_path, rows, limits=half)
    assert (strict.kept, strict.written, strict.refused) == (2, 0, 2)
    assert tree(tmp_path / "out") == refused


def test_a_row_that_is_refused_takes_what_an_earlier_success_left(tmp_path):
    write_scans(tmp_path)
    run(tmp_path, [row(0)])
    Image.open(tmp_path / "s0.png").transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "s0.png")
    assert run(tmp_path, [row(0)], limits=Limits(min_contrast=2)).refused == 1
    assert set(tree(tmp_path / "out")) == {"metadata.jsonl", "errors.jsonl"}


def test_a_row_that_fails_takes_what_an_earlier_success_left(tmp_path, monkeypatch):
    write_scans(tmp_path)
    run(tmp_path, [row(0)])

    def fails(*_, **__):
        raise FloatingPointError("the network gave nan")

    monkeypatch.setattr("composition.runs.batch.compose", fails)
    assert run(tmp_path, [row(0, prompt="another prompt")]).bad == 1
    assert errors(tmp_path) == [{"line": 1, "id": "case0", "error": "FloatingPointError: the network gave nan"}]
    assert set(tree(tmp_path / "out")) == {"metadata.jsonl", "errors.jsonl"}


def test_a_record_without_its_labels_measures_is_made_again(tmp_path):
    write_scans(tmp_path)
    run(tmp_path, [row(0), row(1)])
    before = tree(tmp_path / "out")
    for number, change in enumerate((lambda entry: entry.pop("label"), lambda entry: entry["label"].pop("contrast"))):
        path = tmp_path / "out" / "records" / f"case{number}.json"
        entry = json.loads(path.read_text())
        change(entry)
        path.write_text(json.dumps(entry))
    assert run(tmp_path, [row(0), row(1)]).written == 2 and tree(tmp_path / "out") == before


def test_the_summary_tells_of_inversions_that_missed_their_tolerance(tmp_path):
    write_scans(tmp_path)
    summary = run(tmp_path, [row(n) for n in range(3)])
    reports = [report for entry in records(tmp_path) for report in entry["inversion"].values()]
    assert summary.missed == 6 == sum(not report["converged"] for report in reports)
    assert summary.worst_error == max(report["error"] for report in reports)
    assert f"Inversions above their tolerance: 6; the worst error: {summary.worst_error:.1%}." in str(summary)
    loose = run(tmp_path, [row(0)], replace(QUICK, tolerance=1.0))
    assert (loose.missed, loose.worst_error > 0) == (0, True)


def test_rows_without_an_id_are_named_by_their_line(tmp_path):
    manifest = write_manifest(write_scans(tmp_path) / "manifest.jsonl", [row(0, id=None), "", row(1, id=None)])
    rows, errors = read_manifest(manifest, QUICK)
    assert ([entry.id for entry in rows], errors) == (["000001", "000003"], {})


def test_the_layout_is_an_image_folder(tmp_path):
    """The folder follows the rules of datasets' "imagefolder" builder, and the images are where the metadata says."""
    write_scans(tmp_path)
    run(tmp_path, [row(0), row(1, user_box=None, user_mask="m.png")])
    out = tmp_path / "out"
    for record in records(tmp_path):
        image, mask = (np.asarray(Image.open(out / record[name])) for name in ("file_name", "mask_file_name"))
        assert image.shape == mask.shape == (60, 80)
        assert set(np.unique(mask)) == {0, 255}
        assert json.loads((out / "records" / f"{record['id']}.json").read_text()) == record
    # Every image in the folder has its row, because the builder takes all images and wants metadata of each.
    listed = {record[name] for record in records(tmp_path) for name in ("file_name", "mask_file_name")}
    assert {str(path.relative_to(out)) for path in out.rglob("*.png")} == listed


def test_the_bar_of_rank_0_comes_to_its_end_though_another_rank_has_the_last_item(capsys):
    ranks = Ranks("two ranks")
    ranks.store.add("taken", 1)  # by another rank, which is at work on it until rank 0 has none left
    timer = threading.Timer(0.1, ranks.store.add, ("finished", 1))
    done = []
    for item in ranks.share("abc", title="items", quiet=False):
        done.append(item)
        if item == "c":
            timer.start()
    timer.join()
    assert done == ["b", "c"] and capsys.readouterr().err.rstrip().split("\r")[-1].startswith("items: 100%")
