"""The kinds of inputs that the fuzzer throws: each is a function that draws one and acts on it as a command would.

It returns where the outcome is a result, and asserts that the result is right where the right one is known. It raises
one of the kind's clear errors where the input is refused; any other exception is a finding.
"""

import contextlib
import gzip
import io
import json
import math
import os
import random
import struct
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from composition_files import row, write_scans
from fake_model import FakeModel
from folder_scans import coco_file, disc, draw_folders, runs_of, via_file
from PIL import Image
from safetensors.torch import save_file
from small_models import SCHEDULER_JSON, TEXT_JSON, UNET_JSON, VAE_JSON

import sd21
from composition import Settings, cli, compose
from composition.datasets.folders import read_folder as read_scans
from composition.datasets.reading import LeftOut
from composition.datasets.rules import Rules
from composition.inversion_bench.choices import Choices as BenchChoices
from composition.inversions import Trajectory
from composition.placement import Sample
from composition.realism.choices import Choices
from composition.realism.crops import cut
from composition.realism.scoring import score
from composition.realism.sets import read_set
from composition.runs.columns import SPLITS, TAKEN
from composition.runs.layouts import LAYOUTS
from composition.runs.limits import Limits
from composition.runs.manifest import read_manifest
from composition.runs.placed_volume import VolumeRequest, place_volume
from composition.runs.record import read_kept
from composition.runs.store import InversionStore
from composition.scans.errors import DatasetError, PlacementError, RowError, ScanError, SheetError
from composition.scans.images import Scan, read_mask, read_scan
from composition.scans.slices import Meaning
from composition.variation import Variation, varied_mask, vary
from sd21.config import ConfigError, SchedulerConfig, TextConfig, UNetConfig, VAEConfig
from sd21.sources import read_folder
from sd21.text import TextEncoder
from sd21.unet import UNet
from sd21.vae import VAE
from sd21.weights import CheckpointError, index
from solvers import InversionReport


@dataclass(frozen=True)
class Kind:
    """act(draw, folder) uses an input in one way. clear: the errors that are clear ones."""

    act: Callable[[random.Random, Path], None]
    clear: tuple[type[Exception], ...]


def nasty(draw: random.Random) -> object:
    """A value that JSON can hold and that nobody expects."""
    deep: object = 1
    for _ in range(draw.choice((3, 400))):
        deep = [deep] if draw.random() < 0.5 else {"a": deep}
    return draw.choice(
        [
            *(None, True, False, "", "nan", "none", " ", "\ud83d", "a\nb", "é\u2028", "x" * 10_000, "../..", "a\0b"),
            *(0, 1, -1, 2, 7, 255, 65536, 2**31, 2**63, -(2**63), 10**8, 10**400, 10**4000),
            *(0.0, -0.0, 0.5, 1e-320, 1e300, -1e300, 1e-5, math.nan, math.inf, -math.inf),
            *([], {}, [1], [1, 2, 3, 4], [None] * 5, [[1, 2], [3, 4]], {"a": 1}, deep),
        ]
    )


def damaged(draw: random.Random, content: bytes) -> bytes:
    """Bytes with one to four kinds of damage, most of them near the beginning, where headers are."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4))):
        where = min(len(data), int(draw.expovariate(1 / (1 + len(data) / 8))))
        some = draw.randbytes(draw.choice((1, 1, 2, 4, 64)))
        match draw.randrange(6):
            case 0:
                data[where : where + len(some)] = some
            case 1:
                data = data[:where]
            case 2:
                data[where:where] = some
            case 3:
                data[where : where + draw.choice((1, 4, 100))] = b""
            case 4:
                data[where : where + 4] = draw.choice(
                    (b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\x00\x00\x00\x80")
                )
            case 5:
                data[where:where] = data[max(0, where - 200) : where] * draw.choice((1, 50))
    return bytes(data)


def sizes(draw: random.Random) -> tuple[int, int]:
    return draw.choice((1, 2, 7, 33, 60)), draw.choice((1, 3, 16, 61))


def pixels(draw: random.Random, shape: tuple[int, ...], dtype=np.uint8) -> np.ndarray:
    generator = np.random.default_rng(draw.randrange(2**32))
    values = generator.integers(0, draw.choice((2, 200)), shape)
    return values.astype(dtype)


def check_scan(scan: Scan) -> None:
    values = scan.values()
    assert values.shape == (*scan.size, 3) and np.isfinite(values).all() and np.abs(values).max() <= 1
    drawn = scan.render(values, grayscale=scan.grayscale)
    assert np.array_equal(drawn, scan.pixels, equal_nan=drawn.dtype.kind == "f") or scan.pixels.ndim == 3


SCANS = {"L": "png", "RGB": "png", "RGBA": "png", "LA": "png", "P": "png", "1": "png", "I;16": "png", "F": "tif"}
OTHERS = {"CMYK": "jpg", "L": "bmp", "RGB": "webp", "I;16": "tif", "P": "gif", "I": "tif"}


def drawn_image(draw: random.Random) -> Image.Image:
    mode = draw.choice((*SCANS, *OTHERS))
    height, width = sizes(draw)
    if mode in ("I;16", "I", "F"):
        dtype = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        values = pixels(draw, (height, width), dtype) * (draw.choice((1, 300)) if mode != "F" else 1.5)
        return Image.fromarray(values.astype(dtype))
    return Image.fromarray(pixels(draw, (height, width, 3))).convert(mode)


def image(draw: random.Random, folder: Path) -> None:
    picture = drawn_image(draw)
    suffix = draw.choice((SCANS.get(picture.mode) or "tif", OTHERS.get(picture.mode) or "png"))
    path, content = folder / f"scan.{suffix}", io.BytesIO()
    try:
        options = {"exif": b"Exif\0\0II*\0" + draw.randbytes(40)} if draw.random() < 0.2 else {}
        picture.save(content, format=Image.registered_extensions()[f".{suffix}"], **options)
    except (OSError, ValueError, KeyError):  # Pillow does not write this mode in this format
        picture.convert("L").save(content, format="PNG")
    data = content.getvalue()
    path.write_bytes(data if draw.random() < 0.2 else damaged(draw, data))
    if draw.random() < 0.5:
        check_scan(read_scan(odd_name(draw, path)))
    else:
        assert read_mask(odd_name(draw, path)).dtype == bool


def odd_name(draw: random.Random, path: Path) -> Path:
    """Now and then the file under another suffix, with a slice's number, or as a pipe, a link to itself or a folder."""
    if draw.random() < 0.85:
        return path
    name = draw.choice(("a.png", "a.dcm", "a.nii.gz", "a", "a.tif", "é\u2028.png", os.fsdecode(b"a\xff.png")))
    other = path.with_name(name)
    other = path.with_name("b") if other.exists() else other
    match draw.randrange(5):
        case 0:
            path.rename(other)
        case 1:
            return Path(f"{path}#{draw.choice((0, 1, 10**9))}")
        case 2:
            os.mkfifo(other)
        case 3:
            other.symlink_to(other)
        case 4:
            other.mkdir()
    return other


def mask(draw: random.Random, folder: Path) -> None:
    """A mask whose inside is known, in any way that keeps it."""
    generator = np.random.default_rng(draw.randrange(2**32))
    inside = generator.random(sizes(draw)) < draw.choice((0.0, 0.3, 1.0))
    path, way = folder / "mask.png", draw.randrange(8)
    if way == 0:
        Image.fromarray(inside).save(path)
    elif way == 1:
        Image.fromarray(inside * np.uint8(draw.choice((1, 127, 255)))).save(path)
    elif way == 2:
        Image.fromarray(inside * np.uint16(draw.choice((1, 256, 65535)))).save(path)
    elif way == 3:
        Image.fromarray(np.where(inside[..., None], np.uint8([1, 0, 0]), np.uint8(0))).save(path)
    elif way == 4:
        path = folder / "mask.tif"
        outside = draw.choice((0.0, np.nan))
        Image.fromarray(np.where(inside, draw.choice((1.0, 255.0)), outside).astype(np.float32)).save(path)
    elif way == 5:
        picture = Image.fromarray(inside.astype(np.uint8), mode="P")
        picture.putpalette([0, 0, 0, *draw.choice(([255, 0, 0], [1, 1, 1], [0, 0, 255]))])
        picture.save(path)
    elif way == 6:
        path = folder / "mask.webp"
        Image.fromarray(inside * np.uint8(draw.choice((1, 255)))).save(path, lossless=True)
    else:
        path = folder / "mask.tif"
        Image.fromarray(inside * np.int32(draw.choice((1, -1, 10**6)))).save(path)
    try:
        found = read_mask(path)
    except ScanError as error:
        # A palette whose colour prevails on the border may mean either.
        assert not inside.any() or (way == 5 and "palette" in str(error)), f"way {way}"
        raise
    assert np.array_equal(found, inside), f"way {way}"


def dicom(draw: random.Random, folder: Path) -> None:
    import pydicom
    from pydicom.dataset import FileMetaDataset

    height, width = sizes(draw)
    frames = draw.choice((1, 1, 1, 3))
    bits = draw.choice((8, 16))
    stored = pixels(draw, (frames, height, width), np.uint8 if bits == 8 else np.uint16)
    data = pydicom.Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = "1.2.3"
    data.Rows, data.Columns, data.SamplesPerPixel = height, width, 1
    data.BitsAllocated = data.BitsStored = bits
    data.HighBit, data.PixelRepresentation = bits - 1, 0
    data.PhotometricInterpretation = draw.choice(("MONOCHROME2", "MONOCHROME2", "MONOCHROME1"))
    if frames > 1:
        data.NumberOfFrames = frames
    data.PixelData = stored.tobytes() + b"\0" * (stored.nbytes % 2)
    if draw.random() < 0.5:
        data.RescaleIntercept, data.RescaleSlope = draw.choice((-1024, 0, 5)), draw.choice((1, 2, 0.5))
    if draw.random() < 0.5:
        data.WindowCenter, data.WindowWidth = draw.choice((40, 0, [40, 50])), draw.choice((400, 1, [80, 350]))
    data.Modality = draw.choice(("CT", "MR", "US"))
    sound = draw.random() < 0.25
    if not sound:
        spoil(draw, data)
    path, content = folder / "a.dcm", io.BytesIO()
    try:
        data.save_as(content, enforce_file_format=True)
    except Exception:  # pydicom refuses to write some of these; they reach nobody
        return
    written = content.getvalue()
    path.write_bytes(written if sound or draw.random() < 0.4 else damaged(draw, written))
    place = path if sound else odd_name(draw, path)
    name = f"{place}#{draw.randrange(frames)}" if frames > 1 else place
    if draw.random() < 0.5:
        check_scan(read_scan(name))
        return
    try:
        found = read_mask(name)
    except ScanError:
        assert not sound or not all((frame != 0).any() for frame in stored)
        raise
    if sound:
        frame = stored[int(str(name).rpartition("#")[2]) if frames > 1 else 0]
        assert np.array_equal(found, frame != 0)


def spoil(draw: random.Random, data) -> None:
    """Give up to three elements of a DICOM file values that it may not have, or take them away."""
    names = (
        *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
        *("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth", "NumberOfFrames", "PixelData"),
        *("PhotometricInterpretation", "Modality", "VOILUTFunction", "PlanarConfiguration"),
    )
    for name in draw.sample(names, draw.choice((1, 1, 2, 3))):
        if draw.random() < 0.2 and name in data:
            delattr(data, name)
            continue
        value = draw.choice(
            (0, 1, -1, 3, 12, 65535, "", None, "nan", "inf", "1e300", "RGB", "PALETTE COLOR", "SIGMOID", [], b"", b"\0")
        )
        try:
            setattr(data, name, value)
        except Exception:  # pydicom refuses the value at once
            continue


def nifti(draw: random.Random, folder: Path) -> None:
    import nibabel

    shape = draw.choice(((8, 9), (8, 9, 1), (8, 9, 3), (8, 9, 3, 1), (8, 9, 1, 4), (1, 1, 1)))
    dtype = draw.choice((np.uint8, np.int16, np.float32, np.float64, np.int32, np.complex64))
    values = pixels(draw, shape, dtype)
    if np.issubdtype(dtype, np.floating) and draw.random() < 0.5:
        values.flat[0] = draw.choice((np.nan, np.inf, -np.inf, 1e30))
    affine = np.diag([draw.choice((1.0, -2.0)), draw.choice((1.0, 0.5)), draw.choice((1.0, 5.0)), 1.0])
    if draw.random() < 0.1:
        affine[draw.randrange(3), draw.randrange(4)] = draw.choice((0.0, np.nan, 1e30))
    try:
        content = nibabel.Nifti1Image(values, affine).to_bytes()
    except Exception:  # nibabel does not write this affine
        content = nibabel.Nifti1Image(values, np.eye(4)).to_bytes()
    sound = draw.random() < 0.15
    if not sound and draw.random() < 0.5:  # one field of the header
        where, form = draw.choice(
            ((40, "8h"), (70, "2h"), (76, "8f"), (108, "3f"), (252, "2h"), (280, "12f"), (344, "4s"))
        )
        values = [draw.choice((0, 1, -1, 7, 32767, -32768)) for _ in range(struct.calcsize(form))]
        packed = b"".join(struct.pack("<" + form[-1], b"" if form[-1] == "s" else v) for v in values)
        part = packed[: draw.randrange(1, struct.calcsize(form) + 1)]
        content = content[:where] + part + content[where + len(part) :]
    elif not sound:
        content = damaged(draw, content)
    path = folder / draw.choice(("a.nii", "a.nii.gz"))
    if path.suffix == ".gz":
        content = gzip.compress(content, 1)
        content = damaged(draw, content) if not sound and draw.random() < 0.3 else content
    path.write_bytes(content)
    slices = shape[2] if len(shape) > 2 else 1
    name = odd_name(draw, path) if not sound else path
    name = f"{name}#{draw.randrange(slices)}" if draw.random() < 0.8 else name
    check_scan(read_scan(name)) if draw.random() < 0.6 else read_mask(name)


def weights(draw: random.Random, folder: Path) -> None:
    tensors = {
        f"{draw.choice('abc')}.{n}": torch.arange(float(draw.choice((0, 1, 6)))).view(-1, 1)
        for n in range(draw.choice((0, 1, 3)))
    }
    path = folder / "a.safetensors"
    save_file(tensors, path)
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    way = draw.randrange(4)
    if way == 1:
        path.write_bytes(damaged(draw, content))
    elif way == 2:
        header = json.loads(content[8 : 8 + length])
        entry = draw.choice(list(header)) if header else "a"
        if isinstance(header.get(entry), dict):
            header[entry][draw.choice(("dtype", "shape", "data_offsets"))] = nasty(draw)
        else:
            header[entry] = nasty(draw)
        text = json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    elif way == 3:
        claimed = draw.choice((0, 1, 2**31, 2**63, 2**64 - 1, length + 1, length - 1))
        path.write_bytes(struct.pack("<Q", claimed) + draw.choice((content[8:], b"[" * 100_000, b"")))
    stored = index([path])
    read = {key: one.read(torch.device("cpu"), torch.float32) for key, one in stored.items()}
    if way == 0:
        assert read.keys() == tensors.keys()
        assert all(torch.equal(read[key], tensors[key]) for key in tensors)


CONFIGS = (
    ("unet/config.json", UNET_JSON, UNetConfig, UNet),
    ("vae/config.json", VAE_JSON, VAEConfig, VAE),
    ("text_encoder/config.json", TEXT_JSON, TextConfig, TextEncoder),
    ("scheduler/scheduler_config.json", SCHEDULER_JSON, SchedulerConfig, None),
)


def config(draw: random.Random, folder: Path) -> None:
    """A published configuration with wrong values: what is accepted must also build, without memory."""
    _, published, kind, network = draw.choice(CONFIGS)
    changed = dict(published)
    for name in draw.sample([*published, "sample_size", "norm_eps", "mystery"], draw.choice((0, 1, 1, 2))):
        if draw.random() < 0.15:
            changed.pop(name, None)
        elif isinstance(published.get(name), list) and draw.random() < 0.5:
            changed[name] = list(published[name])
            changed[name][draw.randrange(len(changed[name]))] = nasty(draw)
        else:
            changed[name] = nasty(draw)
    made = kind.from_dict(changed if draw.random() < 0.95 else nasty(draw))
    if network is None:
        values = made.alphas_cumprod()
        assert torch.isfinite(values).all() and ((values > 0) & (values < 1)).all()
    else:
        with torch.device("meta"):
            network(made)


def model_folder(draw: random.Random, folder: Path) -> None:
    """A folder in the diffusers layout, with a file that is damaged, missing, a pipe or a folder."""
    for name, published, _, network in CONFIGS:
        (folder / name).parent.mkdir()
        (folder / name).write_text(json.dumps(published))
        if network is not None:
            stem = "model" if name.startswith("text") else "diffusion_pytorch_model"
            save_file({"a": torch.zeros(1)}, (folder / name).with_name(f"{stem}.safetensors"))
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        (folder / "tokenizer" / name).write_text("{}")
    path = draw.choice([path for path in sorted(folder.rglob("*")) if path.is_file()])
    content = path.read_bytes()
    match draw.randrange(7):
        case 0:
            path.write_bytes(damaged(draw, content))
        case 1:
            path.unlink()
        case 6:
            path.write_bytes(content + draw.choice((b"", b"\n")))
        case 2:
            path.unlink()
            draw.choice((os.mkfifo, os.mkdir))(path)
        case 3:
            path.write_bytes(draw.choice((b"[" * 100_000, b"\xff\xfe", b"", b"null", b"1" * 5000, b'{"a":' * 10_000)))
        case 4:
            path.write_text(json.dumps(nasty(draw)))
        case 5:
            path.unlink()
            path.symlink_to(draw.choice((path, Path("/dev/zero"), folder)))
    read_folder(folder, draw.choice((None, None, "fp16")), draw.choice((None, "epsilon", "v_prediction")), None)


NAMES = (["age"], ["bbox"], ["image"], ["a_file_name"], [""], ["\ud83d"], ["a\nb"], ["n" * 5000], ["é\u2028"], ["id "])


def manifest(draw: random.Random, folder: Path) -> None:
    """Lines of a manifest: each that holds anything is a row or a bad row, and none costs another."""
    write_scans(folder)
    lines = []
    for number in range(draw.choice((0, 1, 3, 8))):
        entry = row(number, id=draw.choice((f"r{number}", None, "same")))
        known = [*entry, "user_mask", "settings", "window", "label", "variation", "class", "split"]
        for name in draw.sample([*known, "mystery", *draw.choice(NAMES)], draw.choice((0, 0, 1, 2))):
            entry[name] = nasty(draw)
        if draw.random() < 0.1:
            entry["settings"] = {draw.choice([one.name for one in fields(Settings)]): nasty(draw)}
        if draw.random() < 0.1:
            entry["variation"] = {draw.choice([one.name for one in fields(Variation)]): nasty(draw)}
        text = json.dumps(entry, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
        lines.append(damaged(draw, text).replace(b"\n", b" ") if draw.random() < 0.2 else text)
    content = draw.choice((b"", b"\xef\xbb\xbf")) + draw.choice((b"\n", b"\r\n")).join(lines)
    path = folder / "manifest.jsonl"
    path.write_bytes(content)
    rows, bad = read_manifest(path, Settings())
    filled = sum(bool(line.decode("utf-8", "replace").lstrip("\ufeff").strip()) for line in content.split(b"\n"))
    assert len(rows) + len(bad) == filled, (len(rows), len(bad), filled)
    assert len({one.id.casefold() for one in rows}) == len(rows)
    for one in bad.values():
        assert one.error and "\n" not in one.error and len(one.error) < 1000
    for one in rows:
        json.dumps(one.request.describe())
        json.dumps(asdict(one.settings), allow_nan=False)
        json.dumps(one.columns, allow_nan=False, ensure_ascii=False).encode()
        assert not TAKEN & one.columns.keys() and one.columns.get("split", "test") in SPLITS
    kinds = {name: {type(one.columns.get(name)) for one in rows} for one in rows for name in one.columns}
    assert all(len(found - {type(None), int, float}) <= 1 for found in kinds.values()), kinds


def batch(draw: random.Random, folder: Path) -> None:
    """`batch` with rows, layouts and names that make no sense: an exit code, and a layout only of rows in the table."""
    write_scans(folder)
    rows = [
        row(n, split=draw.choice((None, "train", "test")), age=draw.choice((None, n, nasty(draw)))) for n in range(2)
    ]
    text = "".join(json.dumps(one) + "\n" for one in rows)
    (folder / "manifest.jsonl").write_text(text, encoding="utf-8", errors="surrogatepass")
    layout = draw.choice(tuple(LAYOUTS))
    given = {"out": folder / "out", "layout": layout, "method": "copy-paste", "min-contrast": "none"}
    words = (
        "",
        "-1",
        "0",
        "1",
        "999",
        "1000",
        "nan",
        "a b",
        "../x",
        "a\nb",
        "\udcff",
        "é" * 300,
        "background",
        "x" * 99,
    )
    for name in draw.sample(
        ["label-name", "dataset-id", "dataset-name", "layout", "processes"], draw.choice((0, 1, 1))
    ):
        given[name] = draw.choice(words if name != "processes" else words[:3])
    arguments = ["batch", str(folder / "manifest.jsonl"), *(f"--{name}={value}" for name, value in given.items())]
    said, sd21.load = io.StringIO(), lambda *_, **__: FakeModel(64)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code = cli.main(arguments)
        except SystemExit as stop:
            code = stop.code
    told = said.getvalue()
    assert code in (0, 1, 2) and "Traceback" not in told, told
    if code == 0 and given["layout"] != "imagefolder":
        assert list((folder / "out" / given["layout"]).rglob("*case0*"))
    if code == 2:
        raise ValueError(told.strip().splitlines()[-1])


def settings(draw: random.Random, folder: Path) -> None:
    """Settings and limits: what is accepted goes through JSON and comes back the same."""
    kind = draw.choice((Settings, Settings, Limits, Rules, Variation))
    names = draw.sample([one.name for one in fields(kind)], draw.choice((1, 1, 2)))
    others = (np.float32(2), np.int64(3), np.bool_(True), np.array([1, 2]), b"2", 2j, object, torch.tensor(2.0))
    made = kind(**{name: draw.choice((nasty(draw), draw.choice(others))) for name in names})
    assert kind(**json.loads(json.dumps(asdict(made), allow_nan=False))) == made


def command(draw: random.Random, folder: Path) -> None:
    """`run` with options that make no sense: an exit code, one line for an error, and then no result."""
    write_scans(folder)
    given = {
        "background": folder / "s0.png", "object": folder / "s2.png", "object-mask": folder / "m.png",
        "user-box": "20,12,40,32", "prompt": "a tumour", "out": folder / "out", "steps": 4, "start": 2,
    }  # fmt: skip
    options = [one.name.replace("_", "-") for one in fields(Settings)]
    words = ("", "-1", "0", "1", "nan", "inf", "1e300", "1" * 5000, "none", "a\nb", "\udcff", "/dev/zero", "é" * 300)
    for name in draw.sample([*given, *options, "device", "dtype", "method", "user-mask"], draw.choice((1, 1, 2))):
        given[name] = draw.choice((*words, folder, folder / "m.png", folder / "none", folder / "out"))
    arguments = ["run", *(f"--{name}={value}" for name, value in given.items()), "-q"]
    output, said, sd21.load = io.StringIO(), io.StringIO(), lambda *_, **__: FakeModel(64)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(said):
        try:
            code, parsed = cli.main(arguments), True
        except SystemExit as stop:
            code, parsed = stop.code, False
    told = said.getvalue()
    assert code in (0, 1, 2) and "Traceback" not in told, told
    out = Path(given["out"])
    if code == 0:
        assert os.path.exists(out / "record.json")
    elif parsed:
        (error,) = (line for line in told.splitlines() if line.startswith("error: "))
        assert len(error) <= 6000 and not os.path.exists(out / "record.json"), error


def composition(draw: random.Random, folder: Path) -> None:
    """Scans, masks and settings of any shape on the double: the result keeps to what every result keeps to."""
    background, obj = (
        pixels(draw, draw.choice((sizes(draw), (*sizes(draw), 3))), draw.choice((np.uint8, np.uint16)))
        for _ in range(2)
    )
    generator = np.random.default_rng(draw.randrange(2**32))
    masks = []
    for size in (obj.shape[:2], background.shape[:2]):
        one = np.zeros(size, dtype=bool)
        y, x = (sorted(generator.integers(0, length, 2)) for length in size)
        one[y[0] : y[1] + 1, x[0] : x[1] + 1] = True
        if draw.random() < 0.15:
            one &= generator.random(size) < draw.choice((0.02, 0.5, 0.9))
        masks.append(one)
    choices = {
        one.name: draw.choice(tuple(one.metadata["choices"]))
        for one in fields(Settings)
        if one.metadata["choices"] and draw.random() < 0.3
    }
    more = {"focus_context": draw.choice((2.0, 4.0, 1000.0)), "feather": draw.choice((0, 4, 4096))}
    chosen = Settings(steps=4, start=draw.choice((1, 2, 4)), max_sweeps=1, on_failure="return")
    chosen = replace(chosen, **{**choices, **more, "on_failure": "return"})
    sample = Sample(Scan(background), Scan(obj), *masks, draw.choice((None, "a tumour")))
    result = compose(FakeModel(64), *sample, chosen, method=draw.choice(("ours", "ours", "copy-paste", "sdedit")))
    assert (
        result.image.shape[:2] == background.shape[:2] == result.mask.shape and result.image.dtype == background.dtype
    )
    assert result.mask.any() and not (result.mask & ~masks[1]).any()
    json.dumps(asdict(result.label), allow_nan=False)
    rows, columns = result.window.part
    outside = np.ones(background.shape[:2], dtype=bool)
    outside[rows, columns] = False
    assert np.array_equal(result.image[outside].squeeze(), Scan(background).pixels[outside].squeeze()) or (
        result.image.ndim != background.ndim
    )


def stored_inversion(draw: random.Random, folder: Path) -> None:
    """A kept inversion that is damaged: the same one comes back, or none."""
    key, report = "ab" * 32, InversionReport("joint", 0.05, 12, 0, 0.01, True, (0.01,))
    states = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(draw.randrange(2**31)))
    InversionStore(folder)[key] = Trajectory(states, report)
    (path,) = folder.glob("*.safetensors")
    content = path.read_bytes()
    path.write_bytes(damaged(draw, content))
    found = InversionStore(folder).get(key)
    assert found is None or (torch.equal(found.states, states) and found.report.error == report.error)


def record(draw: random.Random, folder: Path) -> None:
    """A record that is damaged: it counts as absent unless all that was asked for is in it."""
    asked = {"id": "a", "settings": {"steps": 4}, "prompt": "é"}
    path = folder / "a.json"
    content = json.dumps({**asked, "label": {"contrast": 1.0}}).encode()
    odd = (b"[" * 100_000, b"null", b"\xff", b"", b"1" * 5000, json.dumps(nasty(draw)).encode("utf-8", "surrogatepass"))
    path.write_bytes(draw.choice((damaged(draw, content), damaged(draw, content), draw.choice(odd))))
    found = read_kept(path, asked)
    assert found is None or all(found[name] == value for name, value in asked.items())


def volume(draw: random.Random, folder: Path) -> None:
    """Volumes of any orientation, spacing and type, and targets of any place: the tumour lies in its region, or there
    is one clear error."""
    import nibabel

    generator = np.random.default_rng(draw.randrange(2**32))

    def write(name: str, values: np.ndarray) -> np.ndarray:
        codes = draw.choice(("RAS", "LPS", "PIR", "SLA", "ASR"))
        image = nibabel.Nifti1Image(values, np.diag([*(draw.choice((0.5, 1.0, 3.0)) for _ in range(3)), 1.0]))
        to = nibabel.orientations.axcodes2ornt(codes)
        image = image.as_reoriented(nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), to))
        if draw.random() < 0.1:
            image.header.set_xyzt_units(*draw.choice((("micron", "sec"), ("meter", "sec"))))
        path = folder / name
        nibabel.save(image, path)
        if draw.random() < 0.03:
            path.write_bytes(damaged(draw, path.read_bytes()))
        return image.affine

    dtype = draw.choice((np.uint8, np.int16, np.float32))
    shape = tuple(draw.choice((1, 7, 20, 20, 20, 20)) for _ in range(3))
    write("bg.nii", generator.integers(0, 100, shape).astype(dtype))
    shape = tuple(draw.choice((1, 9, 16, 16)) for _ in range(3))
    values, labels = generator.integers(0, 100, shape).astype(np.int16), np.zeros(shape, np.uint8)
    first = [int(generator.integers(0, length)) for length in shape]
    labels[tuple(slice(at, at + draw.choice((1, 4, 8))) for at in first)] = draw.choice((1, 1, 3))
    state = draw.getstate()
    affine = write("ob.nii", values)
    draw.setstate(state)  # the mask lies as its scan does
    assert np.array_equal(write("seg.nii", labels), affine)
    box = (0, 0, 0, *(draw.choice((1, 5, 7)) for _ in range(3)))
    if draw.random() < 0.1:
        box = tuple(draw.choice((-1, 0, 2, 5)) for _ in range(6))
    files = folder / "bg.nii", folder / "ob.nii", folder / "seg.nii"
    label = draw.choice((None,) * 8 + (1, 9))
    settings = Settings(fit=draw.choice(("inside", "box")), size=draw.choice(("auto", "region")))
    placed = place_volume(VolumeRequest(*files, None, box, "a tumour", label, draw.choice((None, (50, 40)))), settings)
    masks = [placed.mask(number) for number in range(*placed.move.slices)]
    assert any(mask.any() for mask in masks)
    for number in range(*placed.move.slices):
        assert not (placed.mask(number) & ~placed.user_mask(number)).any()
        sample = placed.sample(number, "a tumour")
        assert np.isfinite(sample.obj.values()).all() and sample.obj.size == sample.background.size


def outlines(draw: random.Random, folder: Path) -> None:
    """VIA and COCO files with values that nobody expects, or damaged: what can be used is, and the rest is counted."""
    root, file = draw_folders(folder, objects=2, backgrounds=0) / "tumour", folder / "outlines.json"
    if draw.random() < 0.5:
        via_file(file, {"o0.png": (40, 40, 9), "o1.png": (50, 40, 9)})
    else:
        shapes = [[[30, 20, 60, 20, 60, 50]], runs_of(disc((50, 40, 9)))]
        coco_file(file, {"o0.png": [shapes[0]], "o1.png": draw.sample(shapes, 2)}, {"o0.png": "a", "o1.png": "b"})
    content = json.loads(file.read_text())
    for _ in range(draw.choice((0, 1, 1, 2))):
        node = content
        while isinstance(node, dict | list) and node:
            key = draw.choice(list(node) if isinstance(node, dict) else range(len(node)))
            if draw.random() < 0.25 or not isinstance(node[key], dict | list):
                node[key] = nasty(draw)
                break
            node = node[key]
    text = json.dumps(content).encode("utf-8", "surrogatepass")
    file.write_bytes(damaged(draw, text) if draw.random() < 0.2 else text)
    found = read_scans(root, file, None, name="pair", prompt="a tumour")
    for one in found.objects:
        assert one.mask.dtype == bool and one.mask.any() and one.mask.shape == read_scan(one.path).size
    assert found.objects or found.left_out.names
    json.dumps(found.left_out.names)


def variation(draw: random.Random, folder: Path) -> None:
    """Scans of any kind and masks of any shape, varied in any way that is allowed: nothing of the mask is lost."""
    shape = (draw.choice((5, 33, 60)), draw.choice((4, 16, 61)))
    dtype = draw.choice((np.uint8, np.uint16, np.int16, np.int64, np.float32))
    values = pixels(draw, (*shape, 3) if dtype in (np.uint8, np.uint16) and draw.random() < 0.5 else shape, dtype)
    if dtype == np.float32 and draw.random() < 0.5:
        values.flat[: draw.choice((1, 20))] = draw.choice((np.nan, np.inf, -np.inf))
    generator = np.random.default_rng(draw.randrange(2**32))
    mask = np.zeros(shape, dtype=bool)
    y, x = (sorted(generator.integers(0, length, 2)) for length in shape)
    mask[y[0] : y[1] + 1, x[0] : x[1] + 1] = True
    spacing = draw.choice((None, (1.0, 1.0), (0.5, 3.0), (4.0, 0.5)))
    scan = Scan(values, meaning=Meaning(spacing=spacing, measured=spacing is not None))
    change = Variation(
        draw.random() < 0.5,
        draw.choice((0, 90, -180, draw.uniform(-180, 180))),
        draw.choice((0.0, draw.uniform(0, 0.15))),
        draw.choice((1.0, draw.uniform(0.25, 4))),
        draw.choice((1.0, 0.1, 10)),
        draw.randrange(2**53),
    )
    varied, moved = vary(scan, mask, change)
    assert varied.size == moved.shape and varied.pixels.dtype == dtype and varied.pixels.ndim == values.ndim
    assert np.array_equal(moved, varied_mask(mask, change, scan.meaning.aspect)) and moved.any()
    assert moved.shape[0] >= shape[0] and moved.shape[1] >= shape[1]
    check_scan(varied)


def pair(draw: random.Random, folder: Path) -> None:
    """`pair` with options that make no sense: an exit code, one line for an error, and then no manifest."""
    root = draw_folders(folder, objects=2, backgrounds=2)
    given = {
        "backgrounds": root / "free", "objects": root / "tumour", "count": 2, "prompt": "a tumour",
        "out": folder / "m.jsonl",
    }  # fmt: skip
    options = [one.name.replace("_", "-") for one in fields(Rules) if one.name != "flip"]
    words = ("", "-1", "0", "1", "0.1", "nan", "inf", "1e300", "1" * 5000, "none", "a=1", "a\nb", "\udcff", "/dev/zero")
    others = ("seed", "object-masks", "label", "split", "split-by", "patient", "busi")
    for name in draw.sample([*given, *options, *others], draw.choice((1, 1, 2))):
        given[name] = draw.choice((*words, folder, root / "free", root / "free" / "b0.png", folder / "none"))
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            code, parsed = cli.main(["pair", *(f"--{name}={value}" for name, value in given.items())]), True
        except SystemExit as stop:
            code, parsed = stop.code, False
    assert code in (0, 2) and "Traceback" not in said.getvalue(), said.getvalue()
    out = Path(given["out"])
    if code == 0:
        rows, bad = read_manifest(out, Settings())
        assert rows and not bad
    elif parsed:
        (_,) = (line for line in said.getvalue().splitlines() if line.startswith("error: "))
        assert not (folder / "m.jsonl").exists()


def reader_sheet(draw: random.Random, folder: Path) -> None:
    """A sheet and a key of a reader study, damaged or filled in oddly: what is scored was asked, once."""
    names = [f"{number:04d}" for number in range(1, 9)]
    key = "crop,set,file,digest\n" + "".join(f"{name},{draw.choice(('real', 'ours'))},a.png,00\n" for name in names)
    words = ("real", "synthetic", "R", "s", "real", "real", "", "maybe", '"', "é", "real,", "a\nb")
    answers = [draw.choice(words if draw.random() < 0.05 else words[:6]) for _ in names]
    given = [draw.choice(names) if draw.random() < 0.02 else name for name in names]
    lines = [f"{draw.choice(('A', 'A', ''))},{name},{answer},3" for name, answer in zip(given, answers, strict=True)]
    sheet = "\n".join(["reader,crop,answer,confidence", *lines])
    for path, text in (("sheet.csv", sheet), ("key.csv", key)):
        content = text.encode()
        Path(folder, path).write_bytes(damaged(draw, content) if draw.random() < 0.3 else content)
    for one in score([folder / "sheet.csv"], folder / "key.csv"):
        assert 0 <= one.right <= one.read <= len(names) and 0 <= one.low <= one.right / one.read <= one.high <= 1


def realism_command(draw: random.Random, folder: Path) -> None:
    """`realism` with options that make no sense: refused in one line before any work, and nothing is left."""
    write_scans(folder / "real")
    given = {"real": folder / "real", "composites": f"ours={folder / 'real'}", "out": folder / "out"}
    options = [one.name.replace("_", "-") for one in fields(Choices)]
    words = (
        "",
        "-1",
        "0",
        "1",
        "nan",
        "inf",
        "1e300",
        "1" * 5000,
        "a=",
        "=b",
        "a\nb",
        "\udcff",
        "/dev/zero",
        "a=/dev/zero",
    )
    for name in draw.sample([*given, *options, "busi", "br35h", "score", "key"], draw.choice((1, 1, 2))):
        given[name] = draw.choice((*words, folder, folder / "real" / "m.png", f"a={folder}"))
    output, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(said):
        try:
            code = cli.main(["realism", *(f"--{name}={value}" for name, value in given.items()), "-q"])
        except SystemExit as stop:
            code = stop.code
    told = said.getvalue()
    assert code == 2 and "Traceback" not in told, told  # three scans without masks are no set
    (error,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert len(error) <= 6000 and not (folder / "out").exists(), error


def inversions_command(draw: random.Random, folder: Path) -> None:
    """`inversions` with options that make no sense: refused in one line before any work, or a table of the scans."""
    write_scans(folder / "scans")
    given = {"scans": folder / "scans", "out": folder / "out", "count": 1, "methods": "naive", "starts": 2, "steps": 4}
    options = [one.name.replace("_", "-") for one in fields(BenchChoices)]
    lists = ["scales", "tolerance", "prompts", "prompt", "swap-prompt", "generated", "busi", "br35h"]
    words = ("", "-1", "0", "1", "1,2", "1,", "nan", "inf", "1e300", "1" * 5000, "none", "naive,naive", "null,text")
    words += ("a\nb", "\udcff", "/dev/zero", "é" * 300, folder, folder / "none", folder / "scans" / "m.png")
    for name in draw.sample([*given, *options, *lists], draw.choice((1, 1, 2))):
        given[name] = draw.choice(words)
    output, said, sd21.load = io.StringIO(), io.StringIO(), lambda *_, **__: FakeModel(64)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(said):
        try:
            code = cli.main(["inversions", *(f"--{name}={value}" for name, value in given.items()), "-q"])
        except SystemExit as stop:
            code = stop.code
    told, out = said.getvalue(), Path(given["out"])
    assert code in (0, 1, 2) and "Traceback" not in told, told
    if code == 0:
        assert (out / "table.md").read_text(encoding="utf-8").startswith("# The inversions on one bench")
        return
    (error,) = (line for line in told.splitlines() if line.startswith("error: "))
    assert len(error) <= 6000 and (code == 1 or not (folder / "out").exists()), error


def labelled_set(draw: random.Random, folder: Path) -> None:
    """Folders of labelled scans, as batch and as others leave them, with odd tables and damaged files: crops are of one
    size, and what is none is counted."""
    write_scans(folder)
    (folder / "m.png").rename(folder / "s0_mask.png")
    if draw.random() < 0.7:
        row = {"file_name": "s0.png", "mask_file_name": "s0_mask.png", "inputs": {"object": {"sha256": "00"}}}
        for name in draw.sample(list(row), draw.choice((0, 0, 1))):
            row[name] = nasty(draw)
        text = json.dumps(row).encode("utf-8", "surrogatepass")
        table = damaged(draw, text) if draw.random() < 0.2 else text
        (folder / "metadata.jsonl").write_bytes(table + draw.choice((b"", b"\n", b"\n\n")))
    if draw.random() < 0.3:
        path = folder / draw.choice(("s0.png", "s0_mask.png"))
        path.write_bytes(damaged(draw, path.read_bytes()))
    left_out = LeftOut()
    choices = Choices(margin=draw.choice((0, 0.25, 4)), size=63, rim=draw.choice((1, 3, 64)))
    for crop in cut(read_set(folder, left_out), replace(choices, size=draw.choice((63, 64))), left_out):
        assert crop.pixels.shape == crop.mask.shape == crop.rim.shape and crop.mask.any() and crop.rim.any()


KINDS = {
    "reader sheet": Kind(reader_sheet, (SheetError,)),
    "realism command": Kind(realism_command, ()),
    "inversions command": Kind(inversions_command, ()),
    "labelled set": Kind(labelled_set, (DatasetError,)),
    "image": Kind(image, (ScanError,)),
    "mask": Kind(mask, (ScanError,)),
    "dicom": Kind(dicom, (ScanError,)),
    "nifti": Kind(nifti, (ScanError,)),
    "weights": Kind(weights, (CheckpointError,)),
    "config": Kind(config, (ConfigError,)),
    "model folder": Kind(model_folder, (CheckpointError, ConfigError)),
    "manifest": Kind(manifest, (RowError,)),  # where not one line is a JSON object
    "batch": Kind(batch, (ValueError,)),
    "settings": Kind(settings, (ValueError,)),
    "command": Kind(command, ()),
    "composition": Kind(composition, (ScanError, PlacementError, ValueError)),
    "stored inversion": Kind(stored_inversion, ()),
    "record": Kind(record, ()),
    "outlines": Kind(outlines, (DatasetError,)),
    "variation": Kind(variation, (ScanError,)),
    "pair": Kind(pair, ()),
    "volume": Kind(volume, (ScanError, PlacementError)),
}
