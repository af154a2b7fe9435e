"""These tests load the layouts of `batch` by the readers of those who use them: Hugging Face's datasets and
pycocotools. nnU-Net's raw format is checked against its published rules, file by file, since its package brings another
torch. A layout is whole or absent whenever a run is killed, and takes no file of a user's along."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from composition_files import row, tree, write_manifest, write_scans
from fake_model import FakeModel
from PIL import Image

from composition import Settings
from composition.runs import layouts
from composition.runs.batch import run_batch
from composition.runs.layouts import LAYOUTS, LISTED, Export, run_lengths
from composition.scans.errors import RowError
from sd21.folders import FolderError

ROOT = Path(__file__).parent.parent
QUICK = Settings(steps=4, start=2, preserve_background_until=1, inversion="naive")
SPLIT = [
    row(0, split="train", patient="a", age=3),
    row(1),
    row(2, split="validation", patient="b", age=4.5),
    row(3, id="test_train-1", split="test", patient="c", age=5),  # names that loaders of folders take for splits
]


@pytest.fixture
def scans(tmp_path):
    return write_scans(tmp_path)


def run(folder, rows, layout="imagefolder", **options):
    summed_up(folder, rows, layout, **options)
    return folder / "out"


def summed_up(folder, rows, layout="imagefolder", **options) -> str:
    """What `batch` says at its end."""
    manifest = write_manifest(folder / "manifest.jsonl", rows)
    export, method = Export(layout=layout, **options), "copy-paste"  # these tests are about files
    return str(
        run_batch(manifest, folder / "out", lambda: FakeModel(64), QUICK, quiet=True, export=export, method=method)
    )


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def mask_of(out: Path, record: dict) -> np.ndarray:
    return np.asarray(Image.open(out / record["mask_file_name"])) > 0


LOAD = """
import json, sys
import numpy as np
import datasets
found = {}
for name, rows in datasets.load_dataset("imagefolder", **json.loads(sys.argv[1])).items():
    assert all(isinstance(rows.features[one], datasets.Image) for one in ("image", "mask")), rows.features
    found[name] = [{name: row[name] for name in json.loads(sys.argv[2])} for row in rows]
    for one, row in zip(found[name], rows, strict=True):
        one |= {"size": row["image"].size, "area": int((np.asarray(row["mask"]) > 0).sum())}
print(json.dumps(found))
"""


def loaded(tmp_path, columns: list[str], **given) -> dict[str, list[dict]]:
    """What datasets loads, in a process of its own, without a network and with its cache below tmp_path."""
    pytest.importorskip("datasets", reason="datasets is not installed")
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, json.dumps(given), json.dumps(columns)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_datasets_loads_the_images_and_masks(tmp_path):
    columns = ["id", "patient", "class", "bbox", "area", "label_contrast"]
    for name, identity in (("table", "test_train-1"), ("folder", "case2")):
        write_scans(tmp_path / name)
        rows = [row(0, patient="a"), row(1, user_box=None, user_mask="m.png"), row(2, id=identity)]
        out = run(tmp_path / name, rows)
        # Given a folder, datasets takes the split from names of files, so that it must have no such name.
        given = {"data_files": {"train": f"{out}/metadata.jsonl"}} if name == "table" else {"data_dir": str(out)}
        found = loaded(tmp_path, columns, **given)["train"]
        expected = [{one: record[one] for one in columns} for record in lines(out / "metadata.jsonl")]
        assert found == [one | {"size": [80, 60]} for one in expected]


@pytest.mark.slow
def test_datasets_loads_the_splits(scans, tmp_path):
    out = run(scans, SPLIT)
    found = loaded(tmp_path, ["id", "split", "age"], data_dir=str(out / "imagefolder"))
    records = {record["id"]: record for record in lines(out / "metadata.jsonl")}
    assert {name: [one["id"] for one in rows] for name, rows in found.items()} == {
        "train": ["case0", "case1"],
        "validation": ["case2"],
        "test": ["test_train-1"],
    }
    for one in (one for rows in found.values() for one in rows):
        assert one["area"] == records[one["id"]]["area"] and one["age"] == records[one["id"]]["age"]


def test_without_a_split_the_batch_itself_is_the_image_folder(scans):
    assert not (run(scans, [row(0)]) / "imagefolder").exists()


def test_a_column_whose_type_differs_between_splits_is_left_out(scans):
    """datasets refuses such a data set; the batch's own table keeps the column."""
    rows = [row(0, split="train", born="2001-02-03", age=1, site="a"), row(1, split="test", born="unknown", age=2.5)]
    told, out = summed_up(scans, rows), scans / "out"
    assert "or that are empty in one; metadata.jsonl has them: born, site." in told
    assert "imagefolder lacks" not in summed_up(scans, [row(0, split="train", age=1), row(1, split="test", age=2)])
    run(scans, rows)
    train, test = (lines(out / "imagefolder" / name / "metadata.jsonl")[0] for name in ("train", "test"))
    assert list(train) == list(test) and not {"born", "site"} & train.keys()
    assert isinstance(train["age"], float) and lines(out / "metadata.jsonl")[0]["site"] == "a"


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_are_those_of_pycocotools(seed):
    masks = pytest.importorskip("pycocotools.mask", reason="pycocotools is not installed")
    generator = np.random.default_rng(seed)
    mask = generator.random((generator.integers(1, 20), generator.integers(1, 20))) < (0, 0.1, 0.5, 0.9, 1)[seed]
    runs = run_lengths(mask)
    assert np.array_equal(
        masks.decode(masks.frPyObjects({"size": list(mask.shape), "counts": runs}, *mask.shape)), mask
    )


def test_pycocotools_reads_the_annotations(scans, capsys):
    coco = pytest.importorskip("pycocotools.coco", reason="pycocotools is not installed")
    out = run(scans, [*SPLIT, row(4, **{"class": "cyst"})], "coco")
    records = {record["file_name"]: record for record in lines(out / "metadata.jsonl")}
    seen = {}
    for split in ("train", "validation", "test"):
        found = coco.COCO(str(out / "coco" / f"annotations_{split}.json"))
        assert {one["name"]: one["id"] for one in found.loadCats(found.getCatIds())} == {"cyst": 1, "tumour": 2}
        for image in found.loadImgs(found.getImgIds()):
            record = records[image["file_name"]]
            (annotation,) = found.loadAnns(found.getAnnIds(imgIds=image["id"], iscrowd=False))
            assert np.array_equal(found.annToMask(annotation), mask_of(out, record))
            assert (annotation["bbox"], annotation["area"]) == (record["bbox"], record["area"])
            assert found.loadCats(annotation["category_id"])[0]["name"] == record["class"]
            picture = out / "coco" / image["file_name"]
            assert Image.open(picture).size == (image["width"], image["height"])
            assert picture.read_bytes() == (out / image["file_name"]).read_bytes()
            assert (record["split"] or "train") == split
            seen[image["id"]] = record["id"]
    assert sorted(seen) == [1, 2, 3, 4, 5]  # numbers tell images of all splits apart


def check_nnunet(folder: Path) -> dict[str, list[str]]:
    """What documentation/dataset_format.md of MIC-DKFZ/nnUNet, and its verify_dataset_integrity, ask of a raw data set.
    Returns the cases of imagesTr and imagesTs."""
    assert re.fullmatch(r"Dataset[0-9]{3}_[A-Za-z0-9_]+", folder.name)
    told = json.loads((folder / "dataset.json").read_text())
    ending, labels = told["file_ending"], told["labels"]
    assert ending in (".png", ".nii.gz") and labels["background"] == 0
    assert sorted(labels.values()) == list(range(len(labels)))  # consecutive
    assert list(told["channel_names"]) == [str(n) for n in range(len(told["channel_names"]))]
    cases = {}
    for part in ("Tr", "Ts"):
        images = sorted(path.name for path in (folder / f"images{part}").glob("*"))
        channels = 1 if ending == ".png" else len(told["channel_names"])
        names = [re.fullmatch(r"(.+)_([0-9]{4})" + re.escape(ending), name).groups() for name in images]
        cases[part] = sorted({case for case, _ in names})
        assert names == [(case, f"{n:04d}") for case in cases[part] for n in range(channels)]
        assert sorted(path.name for path in (folder / f"labels{part}").glob("*")) == sorted(
            case + ending for case in cases[part]
        )
        for case, number in names:
            image, label = (
                folder / f"images{part}" / f"{case}_{number}{ending}",
                folder / f"labels{part}" / (case + ending),
            )
            check_pair(image, label, ending, told)
    assert told["numTraining"] == len(cases["Tr"]) > 0
    return cases


def check_pair(image: Path, label: Path, ending: str, told: dict) -> None:
    """One geometry, one number of channels, and no label that dataset.json does not name."""
    if ending == ".png":
        values, mask = np.asarray(Image.open(image)), np.asarray(Image.open(label))
        assert mask.dtype == np.uint8 and mask.ndim == 2
        assert values.shape[:2] == mask.shape
        assert (values.shape[2] if values.ndim == 3 else 1) == len(told["channel_names"])
    else:
        SimpleITK = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")  # nnU-Net's own reader
        read = [SimpleITK.ReadImage(str(path)) for path in (image, label)]
        values, mask = (SimpleITK.GetArrayFromImage(one) for one in read)
        assert values.shape == mask.shape and mask.dtype == np.uint8
        for about in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(*(getattr(one, about)() for one in read), rtol=1e-5, atol=1e-5)  # as float32
    assert np.isfinite(values).all() and set(np.unique(mask)) <= set(told["labels"].values()) and mask.any()


def test_nnunet_of_images(scans):
    out = run(scans, [*SPLIT, row(4, **{"class": "cyst"})], "nnunet", dataset_id=7, dataset_name="Brains")
    folder = out / "nnunet" / "Dataset007_Brains"
    assert check_nnunet(folder) == {"Tr": ["case0", "case1", "case2", "case4"], "Ts": ["test_train-1"]}
    for record in lines(out / "metadata.jsonl"):
        part = "Ts" if record["split"] == "test" else "Tr"
        label = np.asarray(Image.open(folder / f"labels{part}" / f"{record['id']}.png"))
        assert np.array_equal(label, mask_of(out, record) * (1 if record["class"] == "cyst" else 2))
        image = (folder / f"images{part}" / f"{record['id']}_0000.png").read_bytes()
        assert image == (out / record["file_name"]).read_bytes()


def test_nnunet_of_grey_and_colour_and_16_bits(scans):
    gray = np.asarray(Image.open(scans / "s1.png"))
    Image.fromarray(np.stack([gray, gray // 2, gray], axis=2)).save(scans / "s1.png")
    Image.fromarray(np.asarray(Image.open(scans / "s0.png")).astype(np.uint16) * 257).save(scans / "deep.png")
    out = run(scans, [row(0), row(1), row(2, background="deep.png")], "nnunet")
    folder = out / "nnunet" / "Dataset500_out"
    check_nnunet(folder)
    assert json.loads((folder / "dataset.json").read_text())["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    deep = np.asarray(Image.open(out / "images" / "case2.png"))
    given = np.asarray(Image.open(folder / "imagesTr" / "case2_0000.png"))
    assert np.abs(given.astype(float) - deep[..., None] / 257).max() <= 0.5  # rounded


def test_nnunet_validates_on_the_rows_of_val(scans):
    told = summed_up(scans, SPLIT, "nnunet")
    (folder,) = (scans / "out" / "nnunet").glob("Dataset*")
    assert json.loads((folder / "splits_final.json").read_text()) == [{"train": ["case0", "case1"], "val": ["case2"]}]
    assert f"copy {folder / 'splits_final.json'} to nnUNet_preprocessed/Dataset500_out, and train fold 0." in told
    check_nnunet(folder)
    assert "splits_final" not in summed_up(scans, [row(0), row(3, split="test")], "nnunet")
    assert not (folder / "splits_final.json").exists()


def test_what_is_told_to_load_is_there(scans, tmp_path):
    out = run(scans, [row(0, split="val"), row(1, split="test")], "coco")
    assert f'COCO("{out}/coco/annotations_test.json")' in Export("coco").loads(out)
    out = run(scans, [row(0, split="val"), row(1, split="train")], "coco")
    of_both = [f'COCO("{out}/coco/annotations_{split}.json")' for split in ("train", "val")]
    assert f"pycocotools.coco.{of_both[0]}, pycocotools.coco.{of_both[1]};" in Export("coco").loads(out)
    run(scans, [row(0), row(1)], "imagefolder")
    assert f'data_files={{"train": "{out}/metadata.jsonl"}})' in Export().loads(out)
    run(scans, [row(0, split="val"), row(1, split="train")], "imagefolder")
    assert f'("imagefolder", data_dir="{out}/imagefolder")' in Export().loads(out)
    told = "nnUNet_raw='my data/nnunet' nnUNet_preprocessed='my data/nnunet_preprocessed' nnUNetv2_plan"
    assert told in Export("nnunet").loads(Path("my data"))


@pytest.fixture
def medical(tmp_path):
    pytest.importorskip("pydicom", reason="the extra `medical` is not installed")
    pytest.importorskip("nibabel", reason="the extra `medical` is not installed")
    written = pytest.importorskip("written_files")
    return written.write_medical_scans(tmp_path / "files")


def test_nnunet_of_dicom_and_nifti_has_the_stored_values_in_their_place(medical):
    SimpleITK = pytest.importorskip("SimpleITK", reason="SimpleITK is not installed")
    rows = [
        row(0, background="s0.dcm", object="s2.dcm"),
        row(1, background="volume.nii.gz#1", object="volume.nii.gz#2"),
        row(2, background="volume.nii.gz#1", object="volume.nii.gz#2", **{"class": "cyst"}),
    ]
    out = run(medical, rows, "nnunet")
    folder = out / "nnunet" / "Dataset500_out"
    check_nnunet(folder)
    for name, stored in (("case0", "stored/case0.dcm"), ("case1", "stored/case1.nii.gz")):
        ours, theirs = (
            SimpleITK.ReadImage(str(path)) for path in (folder / "imagesTr" / f"{name}_0000.nii.gz", out / stored)
        )
        # SimpleITK gives the values on the file's scale, Hounsfield units for CT, and the place in the patient.
        assert np.array_equal(SimpleITK.GetArrayFromImage(ours), SimpleITK.GetArrayFromImage(theirs))
        for about in ("GetSpacing", "GetOrigin", "GetDirection"):
            np.testing.assert_allclose(getattr(ours, about)(), getattr(theirs, about)(), rtol=1e-5, atol=1e-5)
    label = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(folder / "labelsTr" / "case0.nii.gz")))
    assert np.array_equal(label[0] > 0, mask_of(out, {"mask_file_name": "masks/case0.png"}))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [row(0), row(1, background="s0.dcm", object="s2.dcm")],
            r"one kind of file, and s0\.png is an image and s0\.dcm",
        ),
        ([row(0, **{"class": "background"})], "the class 'background' means something else to nnU-Net"),
        ([row(0, split="test")], "every row has the split test, and nnU-Net wants one training case"),
    ],
)
def test_what_is_no_data_set_to_nnunet_is_refused_before_any_work(medical, rows, message):
    write_scans(medical)
    manifest = write_manifest(medical / "manifest.jsonl", rows)
    with pytest.raises(RowError, match=message):
        run_batch(manifest, medical / "out", lambda: pytest.fail("loaded"), QUICK, quiet=True, export=Export("nnunet"))
    assert not (medical / "out").exists()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_made_anew_when_rows_change(scans, layout):
    rows = [row(0, split="train"), row(1, split="test"), row(2)]
    run(scans, rows, layout)
    rows[0] = row(0, split="test")
    run(scans, [*rows[:2], row(3)], layout)
    found = tree(scans / "out" / layout)
    assert not [name for name in found if "case2" in name] and [name for name in found if "case3" in name]
    (scans / "out").rename(scans / "before")
    run(scans, [*rows[:2], row(3)], layout)
    assert tree(scans / "out" / layout) == found


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_users_file_in_a_layouts_place_stays(scans, layout):
    out = run(scans, [row(0, split="train"), row(1, split="train")], layout)
    (out / layout / "notes.txt").write_text("mine")
    before = tree(out)
    with pytest.raises(FolderError, match=r"notes\.txt is there, and no batch has made it; move it away"):
        run(scans, [row(0, split="test"), row(1, split="train")], layout)
    assert tree(out) == before


@pytest.mark.parametrize("layout", ["coco", "nnunet"])
def test_an_input_in_a_layouts_place_stays(scans, layout):
    out = run(scans, [row(0)], layout)
    image = next(path for path in sorted((out / layout).rglob("case0*.png")) if "images" in str(path))
    before = tree(out)
    with pytest.raises(FolderError, match="would take the place of the input"):
        run(scans, [row(1, background=str(image.relative_to(scans)))], layout)
    assert tree(out) == before


def test_another_layout_goes_when_the_rows_are_others_and_stays_when_not(scans):
    out = run(scans, [row(0), row(1)], "coco")
    run(scans, [row(0), row(1)], "nnunet")
    assert (out / "coco" / LISTED).exists() and (out / "nnunet" / LISTED).exists()
    run(scans, [row(0)], "nnunet")
    assert not (out / "coco").exists() and (out / "nnunet" / LISTED).exists()


def test_another_layout_that_holds_a_users_file_stays_and_is_told(scans):
    out = run(scans, [row(0), row(1)], "coco")
    (out / "coco" / "notes.txt").write_text("mine")
    told = summed_up(scans, [row(0)], "nnunet")
    assert f"{out / 'coco'} is of other rows and stays, as no batch has made {out / 'coco' / 'notes.txt'}." in told
    assert (out / "coco" / "notes.txt").exists()


def test_a_disk_without_hard_links_gets_copies(scans, monkeypatch):
    run(scans, [row(0), row(1)], "nnunet")
    linked = tree(scans / "out")
    (scans / "out").rename(scans / "before")

    def none(*_):
        raise OSError("no links here")

    monkeypatch.setattr(layouts.os, "link", none)
    assert tree(run(scans, [row(0), row(1)], "nnunet")) == linked


def test_where_all_rows_fail_no_layout_stays(scans):
    out = run(scans, [row(0)], "coco")
    Image.new("L", (80, 60)).save(scans / "s0.png")  # it is blank now
    assert not (run(scans, [row(0)], "coco") / "coco").exists() and (out / "errors.jsonl").exists()


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kill_at_any_moment_leads_to_the_same_files(tmp_path, layout):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(Path(__file__).parent / "kill_layouts.py"), str(tmp_path), layout]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    moments, expected = int(done.stdout.split()[-1]), tree(tmp_path / "undisturbed")
    assert moments > 6  # records, tables and two renames of folders at least
    for moment in range(1, moments + 1):
        assert tree(tmp_path / str(moment)) == expected, f"killed before file {moment}"
