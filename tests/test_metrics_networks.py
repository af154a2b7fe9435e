"""These tests check LPIPS, ST-LPIPS and CLIP: they give the numbers of the published code, refuse files that are not
theirs, and order images by distortion."""

import hashlib
import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from drawn_images import drawn_image
from safetensors.torch import load_file, save_file
from small_models import write_small_tokenizer

from composition import cli
from composition.metrics import CLIP, find_networks, lpips, networks, published_lpips, shift_tolerant_lpips
from composition.metrics.lpips import CHANNELS, ST_FILE, ST_PACKAGE, TORCHVISION_CONVS, blur_pool
from composition.metrics.resize import square
from composition.scans.errors import WeightsError
from composition.scans.images import read_scan

REFERENCE = json.loads((Path(__file__).parent / "reference" / "lpips.json").read_text())
EXAMPLES = Path(__file__).parent.parent / "composition" / "mini" / "examples"
PACKAGE = importlib.util.find_spec(ST_PACKAGE)
needs_weights = pytest.mark.skipif(PACKAGE is None, reason="the extra `metrics` (stlpips-pytorch) is not installed")

# Two float32 convolutions of one network, summed in another order: a few units in the sixth digit.
FLOAT32 = {"rel": 1e-5, "abs": 1e-6}


def pairs(kind):
    for key, expected in REFERENCE[kind].items():
        size, a, b = map(int, key.split())
        yield drawn_image(size, a), drawn_image(size, b), expected


@pytest.fixture(scope="module")
def shift_tolerant():
    return shift_tolerant_lpips()


@pytest.fixture
def shipped():
    """The weights that ship, as they lie in the file."""
    return torch.load(Path(PACKAGE.submodule_search_locations[0], ST_FILE), map_location="cpu", weights_only=True)


@needs_weights
def test_st_lpips_is_the_published_code_s(shift_tolerant):
    for a, b, expected in pairs("shift_tolerant"):
        assert shift_tolerant(a, b).item() == pytest.approx(expected, **FLOAT32)
    assert shift_tolerant.name == "ST-LPIPS (alex)"


@pytest.mark.slow
@needs_weights
def test_st_lpips_of_the_shipped_images_is_the_published_code_s(shift_tolerant):
    for key, expected in REFERENCE["shipped"].items():
        size, *names = key.split()
        scans = (
            torch.from_numpy(read_scan(EXAMPLES / f"{name}.png").values()).permute(2, 0, 1)[None] for name in names
        )
        a, b = (scan.repeat_interleave(int(size) // 256, 2).repeat_interleave(int(size) // 256, 3) for scan in scans)
        assert shift_tolerant(a, b).item() == pytest.approx(expected, **FLOAT32)


@needs_weights
def test_st_lpips_is_zero_for_equal_images_and_grows_with_the_distortion(shift_tolerant):
    image = drawn_image(96)
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    noisy = [shift_tolerant(image, image + strength * noise).item() for strength in (0, 0.02, 0.1, 0.4)]
    blurred = [shift_tolerant(image, F.avg_pool2d(image, k, 1, k // 2, count_include_pad=False)) for k in (3, 7, 15)]
    assert noisy[0] == 0
    assert noisy == sorted(noisy) and noisy[1] > 0
    assert 0 < blurred[0] < blurred[1] < blurred[2]


@needs_weights
def test_a_batch_is_its_rows(shift_tolerant):
    a, b = (torch.cat([drawn_image(64, variant) for variant in variants]) for variants in ((0, 1), (1, 2)))
    single = torch.cat([shift_tolerant(a[[row]], b[[row]]) for row in (0, 1)])
    torch.testing.assert_close(shift_tolerant(a, b), single, rtol=1e-5, atol=1e-6)  # as FLOAT32
    # A caller that compares many images with one takes its features once, as the benchmark does.
    features = shift_tolerant.features(b[:1])
    assert torch.equal(shift_tolerant.distance(shift_tolerant.features(a[:1]), features), single[:1])


@needs_weights
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("net.slice5.13.bias"), "Missing key.*convs.4.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "Unexpected key.*extra"),
        (lambda w: w.update({"lin2.model.1.weight": torch.zeros(1, 5, 1, 1)}), "size mismatch for linear.2"),
        (lambda w: w.update({"net.slice1.1.filt": torch.ones(64, 1, 3, 3)}), "net.slice1.1.filt is not the constant"),
        (lambda w: w.pop("scaling_layer.scale"), "scaling_layer.scale is not the constant"),
    ],
)
def test_st_lpips_loads_strictly(shipped, tmp_path, change, message):
    change(shipped)
    torch.save(shipped, tmp_path / "weights.pth")
    with pytest.raises(WeightsError, match=message):
        shift_tolerant_lpips(tmp_path / "weights.pth")


@pytest.mark.parametrize("content", [None, b"no weights", torch.nn.Identity(), torch.zeros(3)])
def test_files_that_are_no_weights(tmp_path, content):
    path = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)  # a module is a pickle of code, which weights_only refuses
    with pytest.raises(WeightsError, match=r"weights\.pth"):
        shift_tolerant_lpips(path)


def test_without_the_package_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"tumour-composition\[metrics\]"):
        shift_tolerant_lpips()


def drawn_weights():
    """An AlexNet trunk in torchvision's names and linear weights in those of `lpips`, made by arithmetic."""
    trunk = {}
    shapes = [(64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)]
    for i, (conv, shape) in enumerate(zip(TORCHVISION_CONVS, shapes, strict=True)):
        fan_in = shape[1] * shape[2] * shape[3]
        wave = torch.sin(torch.arange(shape[0] * fan_in, dtype=torch.float64) * (i + 1.7))
        trunk[f"{conv}.weight"] = (wave * (6 / fan_in) ** 0.5).view(shape).float()
        trunk[f"{conv}.bias"] = (0.1 * torch.cos(torch.arange(shape[0], dtype=torch.float64))).float()
    linear = {
        f"lin{i}.model.1.weight": (torch.sin(torch.arange(n, dtype=torch.float64)) ** 2).view(1, n, 1, 1).float()
        for i, n in enumerate(CHANNELS)
    }
    return trunk, linear


def test_published_lpips_is_the_published_code_s(tmp_path):
    trunk, linear = drawn_weights()
    torch.save(trunk | {"classifier.1.weight": torch.zeros(2)}, tmp_path / "alexnet.pth")
    torch.save(linear, tmp_path / "linear.pth")
    network = published_lpips(tmp_path / "alexnet.pth", tmp_path / "linear.pth")
    for a, b, expected in pairs("published"):
        assert network(a, b).item() == pytest.approx(expected, **FLOAT32)
    # Figures are kept under this name, so another file must give another name; shapes alone do not tell files apart.
    digests = [hashlib.sha256((tmp_path / f"{n}.pth").read_bytes()).hexdigest()[:8] for n in ("alexnet", "linear")]
    assert network.name == f"LPIPS (alex, v0.1; files {digests[0]}, {digests[1]})"
    with pytest.raises(WeightsError, match="does not hold LPIPS"):  # the same file for both
        published_lpips(tmp_path / "alexnet.pth", tmp_path / "alexnet.pth")
    with pytest.raises(ValueError, match="at least 63 pixels"):
        network(torch.zeros(1, 3, 62, 80), torch.zeros(1, 3, 62, 80))
    for shape in ((2, 3, 64, 64), (1, 3, 64, 70)):
        with pytest.raises(ValueError, match="with as many of their shape"):
            network(torch.zeros(1, 3, 64, 64), torch.zeros(shape))


def test_blur_pool_by_hand():
    # A 4x4 image whose top row r0 is 1. Mirrored by 2 its rows are r2 r1 r0 r1 r2 r3 r2 r1.
    x = torch.zeros(1, 1, 4, 4)
    x[..., 0, :] = 1
    # The windows r2 r1 r0, r0 r1 r2 and r2 r3 r2, weighted 1 2 1 over 4, hold r0 once, once and not at all.
    expected = torch.tensor([0.25, 0.25, 0.0]).view(3, 1).expand(3, 3)
    assert torch.equal(blur_pool(x)[0, 0], expected)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP of a few thousand random weights in the transformers layout."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("metrics") / "clip"
    write_small_tokenizer(folder)
    end = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))["<|endoftext|>"]
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = small | {"vocab_size": 640, "bos_token_id": end - 1, "eos_token_id": end}
    torch.manual_seed(0)
    config = CLIPConfig(text_config=text, vision_config=small | {"image_size": 32, "patch_size": 8}, projection_dim=12)
    CLIPModel(config).save_pretrained(folder)
    return folder


# As published with CLIP (openai/CLIP, clip/clip.py: _transform), for images in [0, 1].
CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def test_clip_is_transformers_own(clip_folder):
    clip = CLIP(str(clip_folder), local_files_only=True)
    images, prompts = (
        torch.cat([drawn_image(50), drawn_image(50, 2)])[..., :40],
        ["an mri scan of a brain", "ultrasound"],
    )
    # The whole image at CLIP's own 32 pixels; `square` itself is held to Pillow's in test_metrics.py.
    pixels = (square(images, 32) + 1) / 2
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (CLIP_MEAN, CLIP_DEVIATION))
    tokens = clip.tokenizer(prompts, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = clip.model(pixel_values=(pixels - mean) / deviation, **tokens)
    torch.testing.assert_close(clip.embed_images(images), own.image_embeds, rtol=0, atol=1e-6)  # unit vectors, float32
    torch.testing.assert_close(clip.embed_texts(prompts), own.text_embeds, rtol=0, atol=1e-6)
    expected = 100 * (own.image_embeds * own.text_embeds).sum(dim=1)
    torch.testing.assert_close(clip.text_similarity(images, prompts), expected, rtol=0, atol=1e-4)  # hundredfold


def test_clip_s_name_tells_its_weights(clip_folder, tmp_path):
    """The benchmark keeps measures under this name."""
    copy = shutil.copytree(clip_folder, tmp_path / "clip")
    tensors = load_file(copy / "model.safetensors")
    before = CLIP(str(copy), local_files_only=True).name
    assert re.fullmatch(rf"CLIP \({copy}; weights [0-9a-f]{{8}}\)", before)
    save_file({name: tensor.clone() for name, tensor in reversed(tensors.items())}, copy / "model.safetensors")
    assert CLIP(str(copy), local_files_only=True).name == before
    tensors["visual_projection.weight"][0, 0] += 1
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    assert CLIP(str(copy), local_files_only=True).name != before


def test_clip_of_equal_images_is_100_and_long_prompts_are_cut(clip_folder):
    clip = CLIP(str(clip_folder), local_files_only=True)
    same, other = drawn_image(50), drawn_image(70, 2)
    assert clip.image_similarity(same, same).item() == pytest.approx(100, abs=1e-4)  # float32 unit vectors, times 100
    assert clip.image_similarity(same, F.interpolate(other, (50, 50))).item() < 100
    assert torch.equal(clip.embed_texts(["brain " * 100]), clip.embed_texts(["brain " * 200]))


def rewritten(folder: Path, change) -> None:
    """The model's weights after `change`, a function that edits a dictionary of them."""
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def without_projections(folder: Path) -> None:
    rewritten(folder, lambda weights: [weights.pop(f"{kind}_projection.weight") for kind in ("text", "visual")])


def without_vision(folder: Path) -> None:
    rewritten(folder, lambda weights: [weights.pop(key) for key in list(weights) if key.startswith("vision_model.")])


def misshapen(folder: Path) -> None:
    rewritten(folder, lambda weights: weights.update({"visual_projection.weight": torch.zeros(12, 5)}))


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:20_000])


def without_vocabulary(folder: Path) -> None:
    for name in ("vocab.json", "merges.txt"):
        (folder / name).unlink()


def with_few_words_known(folder: Path) -> None:
    rewritten(
        folder, lambda weights: weights.update({"text_model.embeddings.token_embedding.weight": torch.ones(9, 16)})
    )
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["text_config"]["vocab_size"] = 9
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (without_projections, "text_projection.weight is missing; visual_projection.weight is missing; download"),
        (without_vision, r"clip: (vision_model\S+ is missing; ){3}and 36 more; download"),
        (misshapen, r"visual_projection.weight is \(12, 5\), not \(12, 16\); download"),
        (truncated, "SafetensorError: .*; download it anew, or name a whole CLIP"),
        (without_vocabulary, ""),  # its kind depends on the version of transformers
        (with_few_words_known, "its tokenizer has [0-9]+ tokens, expected 512 to 9"),
        (shutil.rmtree, "download it anew, or name a whole CLIP"),
    ],
)
def test_no_figures_come_from_half_a_clip(clip_folder, tmp_path, monkeypatch, capsys, damage, message):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    damage(folder)
    message = f"no CLIP model from .*{message}"
    with pytest.raises(WeightsError, match=f"(?s){message}"):
        CLIP(str(folder), local_files_only=True)
    # A CLIP that was named ends the command before the samples are drawn; by default, the tables say what is left out.
    asked = ["benchmark", "--br35h", "data", "--out", str(tmp_path / "out"), "--clip", str(folder)]
    assert cli.main([*asked, "--local-files-only"]) == 2
    assert f"error: no CLIP model from {folder}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(networks, "CLIP_SOURCE", str(folder))
    found = find_networks(None, None, device="cpu", local_files_only=True)
    assert found.clip is None and "clip" not in found.names
    assert re.match(message, found.missing["clip"])


def test_clip_of_older_files_and_of_half_precision(clip_folder, tmp_path):
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    rewritten(folder, lambda weights: weights.update({"text_model.embeddings.position_ids": torch.arange(77)[None]}))
    rewritten(folder, lambda weights: weights.update({"logit_bias": torch.zeros(1)}))  # which no CLIPModel has
    image, clip = drawn_image(32), CLIP(str(clip_folder), local_files_only=True)
    # Weights that lie elsewhere in memory may be summed in another order: unit vectors, float32.
    embedded = CLIP(str(folder), local_files_only=True).embed_images(image)
    torch.testing.assert_close(embedded, clip.embed_images(image), rtol=0, atol=1e-6)
    clip.model.half().save_pretrained(folder)
    assert CLIP(str(folder), local_files_only=True).embed_images(image).dtype == torch.float32


def test_networks_that_are_absent_say_why(clip_folder, monkeypatch):
    monkeypatch.setattr(lpips, "ST_PACKAGE", "no_such_package")
    monkeypatch.setattr(networks, "CLIP_SOURCE", str(clip_folder))
    found = find_networks(None, None, device="cpu", local_files_only=True)
    assert found.lpips is None and found.names == {"clip": found.clip.name} and str(clip_folder) in found.clip.name
    assert list(found.missing) == ["lpips"] and 'pip install "tumour-composition[metrics]"' in found.missing["lpips"]

    def two_lines():
        raise WeightsError("two\n  lines")

    monkeypatch.setattr(lpips, "shift_tolerant_lpips", two_lines)
    found = find_networks(None, None, device="cpu", local_files_only=True)
    assert found.missing == {"lpips": "two lines"}  # it becomes one line of a list in the tables
    with pytest.raises(WeightsError, match=r"nowhere\.pth: there is no such file"):
        find_networks((Path("nowhere.pth"), Path("nowhere.pth")), None, device="cpu", local_files_only=True)
