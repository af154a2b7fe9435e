"""These tests check what ships with the small checkpoint: its folder, the demo's scans, and the card's compositions."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from agreement import assert_diffusers_agrees
from drawn_datasets import draw_br35h, draw_busi
from fake_model import FakeModel
from PIL import Image

import sd21
from composition import Settings, cli, compose, read_mask, read_scan
from composition.mini import draw_examples
from composition.mini import pairs as card_pairs
from composition.mini.demo import EXAMPLES
from sd21.sources import MINI
from sd21.training import data


@pytest.fixture(scope="module")
def mini():
    return sd21.load("mini", device="cpu")


def test_diffusers_loads_the_shipped_folder_and_agrees(mini):
    assert_diffusers_agrees(mini, MINI)


def test_the_prompt_decides_what_is_drawn_and_guidance_means_something(mini):
    """At the first step the prompts already differ, and each from the empty one: the text tower has learned."""
    prompts = ["", *(captions[0] for captions in data.CAPTIONS.values())]
    x = torch.randn(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)).expand(len(prompts), -1, -1, -1)
    with torch.no_grad():
        eps = mini.unet(x, 900, mini.embed(prompts)).flatten(1)
    distance = torch.cdist(eps, eps) / eps.norm(dim=1).mean()
    by_modality = distance[1:3, 3:]  # MRI prompts against ultrasound prompts
    # Rounding alone makes two prompts differ by 1e-6.
    assert by_modality.min() > 1e-2 and distance[0, 1:].min() > 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("example", draw_examples.EXAMPLES, ids=lambda example: example.name)
def test_the_examples_are_what_the_checkpoint_draws(mini, tmp_path, example):
    row = draw_examples.write_example(mini, example, tmp_path)
    shipped = {entry["id"]: entry for entry in map(json.loads, EXAMPLES.read_text().splitlines())}
    assert shipped[example.name] == row
    for role in ("background", "object"):
        drawn, kept = (read_scan(folder / row[role]).pixels.astype(int) for folder in (tmp_path, EXAMPLES.parent))
        # Another number of threads, or another CPU, sums in another order; 20 steps let that grow to a grey level.
        assert np.abs(drawn - kept).max() <= 2
    assert np.array_equal(*(read_mask(folder / row["object_mask"]) for folder in (tmp_path, EXAMPLES.parent)))


def test_the_demo_runs_as_shipped(tmp_path):
    assert cli.main(["demo", "--out", str(tmp_path), "--quiet"]) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert all(entry["converged"] for entry in record["inversion"].values())
    assert Image.open(tmp_path / "composite.png").size == (256, 256)


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """The two datasets in small, all but the scans numbered 0 held out."""
    draw_br35h(tmp_path / "br35h", each=4)
    draw_busi(tmp_path / "busi", each=4)
    names = {"no": "no{}", "yes": "y{}", "normal": "normal ({})", "benign": "benign ({})"}
    held_out = [f"{kind}/{name.format(number)}.png" for kind, name in names.items() for number in range(1, 4)]
    (tmp_path / "held_out.txt").write_text("\n".join(held_out))
    monkeypatch.setattr(data, "HELD_OUT_LIST", tmp_path / "held_out.txt")
    return tmp_path


def test_the_cards_pairs_are_of_held_out_scans(drawn):
    pairs = card_pairs.held_out_pairs(drawn, 3)
    assert list(pairs) == [f"{name}-{number:03d}" for name in ("br35h", "busi") for number in range(3)]
    names = {Path(scan.name).name for sample in pairs.values() for scan in (sample.background, sample.obj)}
    assert len(names) == 12 and not any("0" in name for name in names)


def test_the_cards_picture_shows_no_scan(drawn, monkeypatch):
    """Every cell went through the autoencoder, which here makes all it is given black, but for a pixel of grey level 1
    (a scan of one value is none)."""
    black = []

    def blackened(_, values):
        black.append(values)
        values = np.full_like(values, -1)
        values[0, 0] = 2 / 255 - 1
        return values

    monkeypatch.setattr(card_pairs, "reproduce", blackened)
    model, pairs = FakeModel(image_size=96), card_pairs.held_out_pairs(drawn, 2)
    medians = card_pairs.compare_with_paste(model, pairs, drawn / "compositions.png")
    assert len(black) == 2 * len(pairs)  # ours gives the background its detail back, so it has a scan's pixels as well
    sheet = np.asarray(Image.open(drawn / "compositions.png"))
    assert sheet.shape == (2 * 220, 2 * 3 * 200, 3)
    for row, column in np.ndindex(2, 6):
        cell = sheet[row * 220 + 20 : row * 220 + 212, column * 200 : column * 200 + 192]
        grey = cell[(cell == cell[..., :1]).all(axis=-1)]
        assert set(grey[:, 0]) <= {0, 1, 255} and (grey == 0).any()  # black in a white frame, without the outline
    assert set(medians) == {f"{method}{of}" for method in ("copy-paste", "ours") for of in ("", ", reproduced")}
    assert np.isposinf(medians["copy-paste"]["psnr_bg"]) and np.isfinite(medians["ours"]["psnr_bg"])


def test_what_is_reproduced_went_through_the_autoencoder_once(drawn):
    model, pairs = FakeModel(image_size=96), card_pairs.held_out_pairs(drawn, 2)
    sample = pairs["br35h-000"]
    pasted = compose(model, *sample, Settings.paper(), method="copy-paste")
    shown = card_pairs.reproduced(model, pasted)
    assert shown.decoded and not pasted.decoded
    blocks = pasted.image[:96, :96].astype(float).reshape(12, 8, 12, 8).mean((1, 3))
    # Canvas and scan differ in the longer side only, which is resampled, so the edges of blocks blur.
    reproduced = shown.image[:96, :96].astype(float).reshape(12, 8, 12, 8).mean((1, 3))
    assert np.abs(reproduced - blocks).mean() < 8
    assert np.abs(shown.image.astype(float) - pasted.image).mean() > 4
    assert card_pairs.reproduced(model, shown) is shown
    with pytest.raises(ValueError, match="has pixels of a scan, which may not be shown"):
        card_pairs.sheet({"br35h-000": sample}, [shown], [pasted])
