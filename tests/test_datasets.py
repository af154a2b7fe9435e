"""Br35H and BUSI are read here. The tests check the shapes and forms of their masks, damage that is counted, and the
facts of the real data."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from composition.datasets import read_br35h, read_busi
from composition.datasets.outlines import FARTHEST, via_mask
from composition.scans.errors import DatasetError

DATA = Path(__file__).parents[2] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the scans are not at {DATA}")


def shape(name, **attributes):
    return {"shape_attributes": {"name": name, **attributes}, "region_attributes": {}}


SQUARE = shape("polygon", all_points_x=[2, 6, 6, 2], all_points_y=[3, 3, 5, 5])
CIRCLE = shape("circle", cx=20, cy=10, r=4)
# Values that Python's json reads and that are no coordinates. Pillow draws nonsense for the first four; the fifth
# overflows.
ODD = (math.nan, math.inf, -math.inf, 2.0**31, 10**400, "7", None)
ODD_ELLIPSES = [(name, odd) for name in ("cx", "cy", "rx", "ry", "theta") for odd in ODD]


def test_polygon_holds_its_outline():
    expected = np.zeros((20, 30), dtype=bool)
    expected[3:6, 2:7] = True
    assert np.array_equal(via_mask([SQUARE], (20, 30)), expected)


def test_circle_and_turned_ellipse():
    circle = via_mask([CIRCLE], (20, 30))
    assert circle.sum() == 49  # the lattice points within 4 of the origin (Gauss's circle problem)
    assert circle[10, 16] and circle[10, 24] and circle[6, 20] and not circle[10, 25]

    turned = via_mask([shape("ellipse", cx=50, cy=40, rx=30, ry=8, theta=math.pi / 6)], (100, 110))
    # A smooth convex shape has as many lattice points as its area, up to a small part of its circumference of some 127.
    assert turned.sum() == pytest.approx(math.pi * 30 * 8, abs=13)
    # theta turns x towards y, and y points down: the long axis goes right and down.
    assert turned[40 + 14, 50 + 24] and turned[40 - 14, 50 - 24] and not turned[40 - 14, 50 + 24]
    upright = via_mask([shape("ellipse", cx=50, cy=40, rx=8, ry=30)], (100, 110))  # VIA 1 has no theta
    assert upright[69, 50] and not upright[40, 60]


def test_several_shapes_in_both_forms_are_their_union():
    both = via_mask([SQUARE, CIRCLE], (20, 30))
    assert np.array_equal(both, via_mask([SQUARE], (20, 30)) | via_mask([CIRCLE], (20, 30)))
    assert np.array_equal(both, via_mask({"0": SQUARE, "1": CIRCLE}, (20, 30)))


def test_what_lies_beyond_the_image_is_cut():
    outside = shape("polygon", all_points_x=[25, 60, 60, 25], all_points_y=[-9, -9, 4, 4])
    assert via_mask([outside], (20, 30)).sum() == 5 * 5
    assert not via_mask([shape("circle", cx=-20, cy=5, r=3)], (20, 30)).any()


@pytest.mark.parametrize(
    "region",
    [
        shape("polygon", all_points_x=[1, 2], all_points_y=[1, 2]),
        shape("polygon", all_points_x=[1, 2, 3], all_points_y=[1, 2]),
        shape("circle", cx=1, cy=2),
        shape("ellipse", cx=1, cy=2, rx=0, ry=3),
        shape("point", cx=1, cy=2),
        {"shape_attributes": None},
        "circle",
        *(shape("polygon", all_points_x=[1, 9, odd], all_points_y=[1, 1, 9]) for odd in ODD),
        *(shape("polygon", all_points_x=[1, 9, 9], all_points_y=[1, odd, 9]) for odd in ODD),
        *(
            shape("ellipse", **{"cx": 9, "cy": 9, "rx": 4, "ry": 3, "theta": 0, name: odd})
            for name, odd in ODD_ELLIPSES
        ),
        *(shape("circle", cx=9, cy=9, r=odd) for odd in ODD),
    ],
)
def test_shapes_that_cannot_be_drawn(region):
    with pytest.raises(ValueError):
        via_mask([region], (20, 30))


def test_shapes_are_drawn_up_to_the_farthest_coordinate():
    box = shape("polygon", all_points_x=[5, FARTHEST, FARTHEST, 5], all_points_y=[-FARTHEST, -FARTHEST, 9, 9])
    assert via_mask([box], (20, 30)).sum() == (30 - 5) * (9 + 1)
    # Its leftmost point is (20, 3); it bends by less than a pixel over the image, so that the other rows start at 21.
    assert via_mask([shape("circle", cx=FARTHEST, cy=3, r=FARTHEST - 20)], (20, 30)).sum() == 10 + 19 * 9


def write_scan(path, mode="L", size=(30, 20)):
    """A scan with a ramp, so that it is not blank."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").resize(size).convert(mode).save(path)


def write_mask(path, box=None, mode="1", size=(30, 20)):
    """A mask that is white in the box (left, top, right, bottom)."""
    mask = Image.new("L", size)
    if box is not None:
        mask.paste(255, box)
    mask.convert(mode).save(path)


def entry(name, *regions):
    return {"filename": name, "size": 1, "regions": list(regions), "file_attributes": {}}


@pytest.fixture
def br35h(tmp_path):
    """A Br35H of four sound scans, and one of each thing that can be wrong."""
    for name in ("no2.jpg", "no10.jpg"):
        write_scan(tmp_path / "no" / name)
    (tmp_path / "no" / "no3.jpg").write_bytes((tmp_path / "no" / "no2.jpg").read_bytes()[:200])
    (tmp_path / "no" / "no4.jpg").write_text("not a scan")
    Image.new("L", (30, 20), 7).save(tmp_path / "no" / "no5.png")
    (tmp_path / "no" / ".DS_Store").write_text("")
    train, val = (tmp_path / "Br35H-Mask-RCNN" / name for name in ("TRAIN", "VAL"))
    for name in ("y0.jpg", "y1.jpg", "y5.jpg", "y6.jpg", "y7.jpg"):
        write_scan(train / name)
    write_scan(val / "y500.jpg", "RGB")
    write_scan(tmp_path / "yes" / "y8.jpg")
    annotations = [
        entry("y0.jpg", SQUARE),
        entry("y1.jpg", SQUARE, CIRCLE),
        entry("y2.jpg", SQUARE),  # no such image
        entry("y5.jpg"),
        entry("y6.jpg", shape("point", cx=1, cy=1)),
        entry("y8.jpg", CIRCLE),  # its image is only among the tumour scans
        {"filename": "y9.jpg"},
        entry("y9.jpg") | {"regions": None},
    ]
    train_json = {f"{number}": e for number, e in enumerate(annotations)}
    (train / "annotations_train.json").write_text(json.dumps(train_json))
    dict_form = entry("y500.jpg") | {"regions": {"0": SQUARE, "1": CIRCLE}}
    project = {"_via_settings": {}, "_via_img_metadata": {"a": dict_form, "b": entry("y0.jpg", CIRCLE)}}
    (val / "annotations_val.json").write_text(json.dumps(project))
    (val / "broken.json").write_text("{")
    return tmp_path


def test_br35h_counts_what_it_leaves_out(br35h):
    dataset = read_br35h(br35h)
    assert [path.name for path in dataset.backgrounds] == ["no10.jpg", "no2.jpg"]
    assert [labelled.path.name for labelled in dataset.objects] == ["y0.jpg", "y1.jpg", "y500.jpg", "y8.jpg"]
    assert dataset.objects[3].path.parent.name == "yes"
    square, both, from_dict, _ = (labelled.mask for labelled in dataset.objects)
    assert square.sum() == 15 and both.sum() == 15 + 49 and np.array_equal(both, from_dict)
    assert dataset.left_out.names == {
        "annotated once more": ["y0.jpg"],
        "annotation file cannot be read": ["broken.json"],
        "annotation without file name or regions": ["annotations_train.json"] * 2,
        "image cannot be read": ["no3.jpg", "no4.jpg"],
        "image is blank": ["no5.png"],
        "image is missing": ["y2.jpg"],
        "image without annotation": ["y7.jpg"],
        "mask without lesion": ["y5.jpg"],
        "outline cannot be drawn": ["y6.jpg"],
    }
    assert "2 x image cannot be read: no3.jpg, no4.jpg" in str(dataset.left_out).splitlines()


def test_br35h_damaged_coordinates_are_counted(br35h):
    """The numbers as they stand in JSON: Python's json reads NaN, Infinity and integers of any length."""
    file = br35h / "Br35H-Mask-RCNN" / "TRAIN" / "annotations_train.json"
    for number in ("NaN", "-Infinity", "1" + "0" * 400):
        damaged = json.dumps({"y7": entry("y7.jpg", SQUARE)}).replace("[2, 6, 6, 2]", f"[2, 6, {number}, 2]")
        assert number in damaged
        file.write_text(damaged)
        assert read_br35h(br35h).left_out.names["outline cannot be drawn"] == ["y7.jpg"]


@pytest.fixture
def annotated_thrice(tmp_path):
    """A Br35H whose TRAIN has its annotations in two files, and all of them once more in a file above the folders."""
    write_scan(tmp_path / "no" / "no0.jpg")
    outlines = tmp_path / "Br35H-Mask-RCNN"
    for name in ("TRAIN/y0.jpg", "TRAIN/y1.jpg", "TRAIN/y2.jpg", "VAL/y500.jpg", "VAL/y501.jpg", "TEST/y701.jpg"):
        write_scan(outlines / name)
    first, second = {"0": entry("y0.jpg", SQUARE)}, {"1": entry("y1.jpg", CIRCLE), "9": entry("y9.jpg", SQUARE)}
    val = {"500": entry("y500.jpg", SQUARE)}
    (outlines / "TRAIN" / "first.json").write_text(json.dumps(first))
    (outlines / "TRAIN" / "second.json").write_text(json.dumps(second))
    (outlines / "VAL" / "val.json").write_text(json.dumps(val))
    (outlines / "annotations_all.json").write_text(json.dumps(first | second | val))
    return tmp_path


def test_br35h_an_annotation_repeated_is_no_matter(annotated_thrice):
    dataset = read_br35h(annotated_thrice)
    assert [labelled.path.name for labelled in dataset.objects] == ["y0.jpg", "y1.jpg", "y500.jpg"]
    assert dataset.left_out.names == {
        "image is missing": ["y9.jpg"],  # once, though two files name it
        "image without annotation": [
            "y2.jpg",
            "y501.jpg",
            "y701.jpg",
        ],  # the last in TEST, which has no annotation file
    }


def test_br35h_other_regions_are_counted_and_the_first_are_taken(annotated_thrice):
    file = annotated_thrice / "Br35H-Mask-RCNN" / "annotations_all.json"
    rows = [
        entry("y0.jpg") | {"regions": {"0": SQUARE}},  # the same regions, in VIA 1's form
        entry("y1.jpg", SQUARE),
        entry("y2.jpg", SQUARE),  # annotated here alone
        entry("y500.jpg", shape("point", cx=1, cy=1)),
    ]
    file.write_text(json.dumps(dict(enumerate(rows))))
    dataset = read_br35h(annotated_thrice)
    masks = {labelled.path.name: labelled.mask.sum() for labelled in dataset.objects}
    assert masks == {"y0.jpg": 15, "y1.jpg": 49, "y2.jpg": 15, "y500.jpg": 15}
    assert dataset.left_out.names["annotated once more"] == ["y1.jpg", "y500.jpg"]
    assert dataset.left_out.names["image without annotation"] == ["y501.jpg", "y701.jpg"]
    assert "outline cannot be drawn" not in dataset.left_out.names  # each image is used, or left out: y500 is used


@pytest.fixture
def busi(tmp_path):
    root = tmp_path / "Dataset_BUSI_with_GT"
    for kind in ("benign", "malignant", "normal"):
        for number in range(1, 8):
            write_scan(root / kind / f"{kind} ({number}).png", "RGB" if number % 2 else "L")
    benign, malignant, normal = (root / kind for kind in ("benign", "malignant", "normal"))
    for number, mode in enumerate(("1", "L", "RGB", "RGBA"), start=1):
        write_mask(benign / f"benign ({number})_mask.png", (3, 4, 8, 10), mode)
    write_mask(benign / "benign (5)_mask.png", (3, 4, 8, 10))
    write_mask(benign / "benign (5)_mask_1.png", (6, 4, 12, 10), "RGBA")
    write_mask(benign / "benign (5)_mask_2.png", None, "RGB")
    write_mask(benign / "benign (6)_mask.png", None, "RGBA")
    write_mask(benign / "benign (99)_mask.png", (3, 4, 8, 10))  # and benign (7) has none
    write_mask(malignant / "malignant (1)_mask.png", (3, 4, 8, 10), size=(31, 20))
    (malignant / "malignant (2)_mask.png").write_text("not a mask")
    write_mask(malignant / "malignant (3)_mask.png", (3, 4, 8, 10))
    (malignant / "malignant (3)_mask_1.png").write_bytes((malignant / "malignant (3)_mask.png").read_bytes()[:45])
    for number in range(4, 8):
        (malignant / f"malignant ({number}).png").unlink()
    write_mask(normal / "normal (1)_mask.png", None)
    write_mask(normal / "normal (2)_mask.png", (3, 4, 8, 10))
    return tmp_path


def test_busi_counts_what_it_leaves_out(busi):
    dataset = read_busi(busi)
    masks = {labelled.path.stem: labelled.mask for labelled in dataset.objects}
    assert list(masks) == [f"benign ({number})" for number in range(1, 6)]
    expected = np.zeros((20, 30), dtype=bool)
    expected[4:10, 3:8] = True
    assert all(np.array_equal(masks[f"benign ({number})"], expected) for number in range(1, 5))
    expected[4:10, 3:12] = True
    assert np.array_equal(masks["benign (5)"], expected)
    assert [path.stem for path in dataset.backgrounds] == [f"normal ({number})" for number in (1, 3, 4, 5, 6, 7)]
    assert dataset.left_out.names == {
        "image without mask": ["benign (7).png"],
        "mask cannot be read": ["malignant (2)_mask.png", "malignant (3)_mask_1.png"],
        "mask of another size than its image": ["malignant (1)_mask.png"],
        "mask without image": ["benign (99)_mask.png"],
        "mask without lesion": ["benign (6).png"],
        "tumour-free scan with a lesion in its mask": ["normal (2).png"],
    }
    inside = read_busi(busi / "Dataset_BUSI_with_GT")
    assert [labelled.path for labelled in inside.objects] == [labelled.path for labelled in dataset.objects]


def test_busi_images_of_one_stem(busi):
    benign = busi / "Dataset_BUSI_with_GT" / "benign"
    write_scan(benign / "benign (1).tif")
    dataset = read_busi(busi)
    assert dataset.objects[0].path.name == "benign (1).png"
    assert dataset.left_out.names["image named like an earlier one but for its suffix"] == ["benign (1).tif"]


def test_busi_masks_that_pillow_stumbles_over_are_counted(busi, monkeypatch):
    benign = busi / "Dataset_BUSI_with_GT" / "benign"
    write_mask(benign / "benign (1)_mask.png", (3, 4, 8, 10), size=(300, 200))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300 * 200 // 2 - 1)  # Pillow's error begins at twice as many
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a mask"
    jpeg = benign / "benign (3)_mask_1.jpg"
    Image.linear_gradient("L").resize((30, 20)).save(jpeg, exif=exif)
    damaged = jpeg.read_bytes().replace(b"\x01\x0e\x00\x02", b"\x01\x03\x00\x02")  # text where a number belongs
    jpeg.write_bytes(damaged)
    dataset = read_busi(busi)
    assert dataset.left_out.names["mask cannot be read"][:2] == ["benign (1)_mask.png", "benign (3)_mask_1.jpg"]
    assert [labelled.path.stem for labelled in dataset.objects] == [f"benign ({number})" for number in (2, 4, 5)]


def test_folders_that_are_not_the_dataset(tmp_path):
    for read in (read_br35h, read_busi):
        with pytest.raises(DatasetError, match="published layout"):
            read(tmp_path)


@pytest.mark.slow
@needs_data
def test_the_real_data():
    """A part of each published set (1500 + 1500 + 701 outlines, and 780 scans), all of it sound."""
    busi = read_busi(DATA / "busi")
    assert (len(busi.backgrounds), len(busi.objects)) == (113, 437 + 180)
    assert busi.left_out.counts == {}
    br35h = read_br35h(DATA / "br35h")
    assert (len(br35h.backgrounds), len(br35h.objects)) == (1400, 701)
    assert br35h.left_out.counts == {}
    sizes = {labelled.path.name: labelled.mask.sum() for labelled in br35h.objects}
    assert sizes["y101.jpg"] == pytest.approx(math.pi * 16 * 12, rel=0.02)  # one ellipse with rx 16, ry 12
