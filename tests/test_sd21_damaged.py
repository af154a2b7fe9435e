"""Files that are damaged, hostile or no files at all, and devices that are not there, are one clear error each: none of
them hangs, and none gets as far as a network's weights."""

import json
import os
import re
import struct

import pytest
import torch
from safetensors.torch import save_file
from small_models import UNET_JSON

import sd21
from sd21 import single_file, sources, weights
from sd21.model import find_device

UNET_FILE = "unet/diffusion_pytorch_model.safetensors"


def refused(source, **how):
    """The one line that `load` refuses a source with."""
    with pytest.raises((sd21.CheckpointError, sd21.ConfigError)) as error:
        sd21.load(source, device="cpu", **how)
    assert "\n" not in str(error.value) and len(str(error.value)) < 900
    return str(error.value)


NO_CONFIGS = {
    "[]": "expected a JSON object {...}, got []",
    "null": "expected a JSON object {...}, got None",
    "3": "expected a JSON object {...}, got 3",
    "": "is not JSON that can be read",
    "[" * 100_000: "is not JSON that can be read: maximum recursion depth exceeded",
    "\udcff": "is not JSON that can be read",
    " " * 2**21: "has 2097152 bytes, expected a config of at most 1048576",
}


@pytest.mark.parametrize("text", NO_CONFIGS, ids=range(len(NO_CONFIGS)))
def test_a_config_that_is_no_object_names_its_file(copy, text):
    for name in sources.CONFIGS:
        kept = (copy / name).read_bytes()
        (copy / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        message = refused(copy)
        assert str(copy / name) in message and NO_CONFIGS[text] in message
        (copy / name).write_bytes(kept)


NUMBERS = {"NaN": "nan", "1e999": "inf", "1" + "0" * 400: "10000", "1" * 5000: "'11111", "10000000000": "10000000000"}


@pytest.mark.parametrize("number", NUMBERS, ids=[value[:8] for value in NUMBERS])
@pytest.mark.parametrize("field", ["norm_eps", "layers_per_block"])
def test_a_number_out_of_bounds_names_file_and_field(copy, number, field):
    text = json.dumps(UNET_JSON | {field: "THE NUMBER"}).replace('"THE NUMBER"', number)
    (copy / "unet/config.json").write_text(text)
    message = refused(copy)
    assert "unet/config.json: " in message and f"{field} must be a" in message and f"got {NUMBERS[number]}" in message


def entry(shape, offsets):
    return {"dtype": "F32", "shape": shape, "data_offsets": offsets}


HEADERS = {
    "no JSON": b"[1, 2",
    "deep": b'{"a":' * 100_000,
    "beyond the file": {"a": entry([100], [0, 400])},
    "overlapping": {"a": entry([8], [0, 32]), "b": entry([8], [16, 48])},
    "negative": {"a": entry([-8], [0, 32])},
    "huge": {"a": entry([2**62, 8], [0, 32])},
    "another size": {"a": entry([9], [0, 32])},
    "huge and empty": {"a": entry([0, 2**62], [0, 0])},  # sound in itself, but no network has it
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_header_that_lies_is_one_error(copy, kind):
    header = HEADERS[kind] if isinstance(HEADERS[kind], bytes) else json.dumps(HEADERS[kind]).encode()
    data = b"" if kind == "huge and empty" else bytes(64)
    (copy / UNET_FILE).write_bytes(struct.pack("<Q", len(header)) + header + data)
    expected = "do not fit its network" if kind == "huge and empty" else f"{copy / UNET_FILE} cannot be read as a safe"
    assert expected in refused(copy)


@pytest.mark.parametrize("data", [b"", b"\x08", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 2**64 - 1)])
def test_a_file_that_ends_in_its_header_is_one_error(copy, data):
    (copy / UNET_FILE).write_bytes(data)
    assert f"{copy / UNET_FILE} cannot be read as a safetensors file" in refused(copy)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path):
    path.write_bytes(struct.pack("<Q", 2) + b"{}")


def reshaped(path):
    """The tensors keep their names, and each has one value."""
    header = {key: entry([1], [4 * n, 4 * n + 4]) for n, key in enumerate(weights.index([path]))}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * len(header)))


@pytest.mark.parametrize("damage", [cut, emptied, reshaped, os.unlink])
def test_a_file_that_changes_after_its_header_was_read_is_named(copy, monkeypatch, damage):
    def fill(module, stored, *where):
        damage(copy / UNET_FILE)
        weights.fill(module, stored, *where)

    monkeypatch.setattr(sd21.model, "fill", fill)
    assert str(copy / UNET_FILE) in refused(copy)


PARTS = [UNET_FILE, "unet/config.json", "scheduler/scheduler_config.json"]
TOKENIZERS = ["tokenizer/vocab.json", "tokenizer/tokenizer_config.json", "tokenizer/added_tokens.json"]


@pytest.mark.parametrize(
    ("part", "make"),
    [
        *((part, make) for part in PARTS + TOKENIZERS for make in (os.mkfifo, os.mkdir)),
        *((part, lambda path: path.symlink_to("nowhere")) for part in PARTS),
    ],
)
def test_a_pipe_a_folder_or_a_broken_link_in_a_files_place_is_named(copy, part, make):
    """A pipe would wait for a writer forever."""
    (copy / part).unlink(missing_ok=True)
    make(copy / part)
    assert re.search(rf"{part} (is|\(what is there is) not a regular file", refused(copy))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_source_that_is_no_file_is_named(tmp_path, make):
    make(tmp_path / "model.safetensors")
    assert "model.safetensors is not a regular file; expected a .safetensors file" in refused(
        tmp_path / "model.safetensors", prediction_type="epsilon"
    )
    with pytest.raises(sd21.CheckpointError, match="this is no regular file"):
        single_file.read(tmp_path / "model.safetensors", None, "epsilon", tmp_path)


def test_a_pipe_or_device_of_another_name_is_no_source(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for source in (tmp_path / "pipe", "/dev/zero"):
        assert f"{source} is neither a folder nor a .safetensors file" in refused(source)


# None of these is on the machine that tests run on, whatever it has: they are unknown, too many, or hold no values.
NO_DEVICES = ("fpga", "cuda:99", "cpu:7", "meta", "hpu", "privateuseone", "", "x" * 10**5, 3.5, [], 10**400)


@pytest.mark.parametrize("device", NO_DEVICES, ids=lambda device: str(device)[:8])
def test_a_device_that_cannot_be_had_is_one_line(device, monkeypatch):
    monkeypatch.setattr(sources, "locate", lambda *_: pytest.fail("the source was looked for before the device"))
    with pytest.raises(
        ValueError, match=r"^device .* cannot be had \(.*\); (expected cpu, .* or leave it out|name cpu)"
    ) as error:
        sd21.load("mini", device=device)
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize(
    ("device", "here"),
    [
        ("cuda", torch.cuda.is_available()),
        ("xpu", torch.xpu.is_available()),
        ("mps", torch.backends.mps.is_available()),
    ],
)
def test_a_device_that_torch_knows_must_be_here(device, here):
    if here:
        assert find_device(device).type == device
    else:
        with pytest.raises(ValueError, match=f"device '{device}' cannot be had"):
            find_device(device)


def test_the_device_is_the_one_named_and_else_the_best():
    assert find_device("cpu") == torch.device("cpu") == find_device(torch.device("cpu"))
    best = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    assert find_device(None).type == best


def test_a_scalar_is_read_as_one(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.tensor(2.5)}, path)
    value = weights.index([path])["a"].read(torch.device("cpu"), torch.float32)
    assert value.shape == () and value == 2.5
