"""The training stages run here on narrow networks and drawn scans. The tests kill and resume them, and check that they
learn and export."""

import csv
import json
import math
import re
import sys
from functools import partial
from itertools import product
from pathlib import Path

import pytest
import torch
from agreement import assert_diffusers_agrees
from drawn_scans import draw_scans
from PIL import Image

import sd21
from composition.mini import card
from sd21.training import __main__ as command_line
from sd21.training import data, loop, recipe
from sd21.training.loop import Plan, learning_rate
from sd21.training.vae import psnr

NARROW_UNET = recipe.UNET | {
    "block_out_channels": (32, 32, 32, 32),
    "attention_head_dim": (1, 1, 1, 1),
    "sample_size": 8,
    "norm_num_groups": 16,  # the lowest level of an 8 x 8 latent has one pixel, no more
}
NARROW_VAE = recipe.VAE | {"block_out_channels": (8, 8, 16, 16)}
NARROW_TEXT = recipe.TEXT | {"num_hidden_layers": 1}


@pytest.fixture(scope="module", autouse=True)
def narrow():
    with pytest.MonkeyPatch.context() as patch:
        for name, config in (("UNET", NARROW_UNET), ("VAE", NARROW_VAE), ("TEXT", NARROW_TEXT)):
            patch.setattr(recipe, name, config)
        patch.setattr(data, "load_pixels", partial(data.load_pixels, size=64))
        yield


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Three drawn scans a class, the first of each held out."""
    root = tmp_path_factory.mktemp("scans")
    draw_scans(root, each=3)
    (root / "held_out.txt").write_text("\n".join(f"{kind}/{kind} (0).png" for kind in data.KINDS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "HELD_OUT_LIST", root / "held_out.txt")
        yield root


def stage(name: str, scans, out, *options: str, code: int = 0) -> None:
    """One stage, as from the command line, which ends with this exit code."""
    source = [] if name == "export" else ["--data", str(scans)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["sd21.training", name, "--out", str(out), *source, *options])
        assert command_line.main() == code


def log_of(path) -> list[dict[str, float]]:
    with path.open() as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


VAE_OPTIONS = ("--steps", "80", "--batch", "4", "--crop", "32", "--lr", "0.02", "--every", "40")
DIFFUSION_OPTIONS = ("--steps", "40", "--batch", "4", "--lr", "0.01", "--every", "20")


@pytest.fixture(scope="module")
def run(scans, tmp_path_factory):
    """All stages in a row."""
    out = tmp_path_factory.mktemp("run")
    stage("vae", scans, out, *VAE_OPTIONS)
    stage("latents", scans, out, "--variants", "2")
    stage("diffusion", scans, out, *DIFFUSION_OPTIONS)
    stage("export", scans, out, "--to", str(out / "checkpoint"))
    return out


class Killed(BaseException):
    pass


def killed_at(step: int):
    """An update that does not return from the given step."""

    def update(self, batch, plan, number):
        if number == step:
            raise Killed
        return whole(self, batch, plan, number)

    whole = loop.Update.__call__
    return update


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options", "step"), [("vae", VAE_OPTIONS, 57), ("diffusion", DIFFUSION_OPTIONS, 27)])
def test_a_killed_run_goes_on_to_the_same_bits(run, scans, tmp_path, monkeypatch, name, options, step):
    if name == "diffusion":
        (tmp_path / "latents.pt").write_bytes((run / "latents.pt").read_bytes())
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop.Update, "__call__", killed_at(step))
        stage(name, scans, tmp_path, *options)
    stage(name, scans, tmp_path, *options)
    resumed, whole = (torch.load(folder / f"{name}.pt") for folder in (tmp_path, run))
    assert [row["loss"] for row in resumed["log"]] == [row["loss"] for row in whole["log"]]
    for part in ("model", "average"):
        assert resumed[part].keys() == whole[part].keys()
        assert all(torch.equal(resumed[part][key], whole[part][key]) for key in whole[part])


def test_a_kill_during_a_save_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    loop.save({"step": 1}, tmp_path / "vae.pt")

    def half_written(state, path):
        path.write_bytes(b"half")
        raise Killed

    monkeypatch.setattr(torch, "save", half_written)
    with pytest.raises(Killed):
        loop.save({"step": 2}, tmp_path / "vae.pt")
    assert torch.load(tmp_path / "vae.pt") == {"step": 1}


@pytest.mark.slow
def test_a_time_limit_ends_at_a_checkpoint_and_the_run_goes_on(run, scans, tmp_path):
    stage("vae", scans, tmp_path, *VAE_OPTIONS, "--minutes", "0")
    assert [row["step"] for row in log_of(tmp_path / "vae.csv")] == [40]
    stage("vae", scans, tmp_path, *VAE_OPTIONS)
    assert log_of(tmp_path / "vae.csv")[-1]["psnr_mri"] == log_of(run / "vae.csv")[-1]["psnr_mri"]


@pytest.mark.slow
def test_another_plan_is_refused(run, scans, capsys):
    stage("vae", scans, run, *VAE_OPTIONS, "--batch", "2", code=2)
    assert re.search(r"trained with .*'batch': 4.*asked for .*'batch': 2", capsys.readouterr().err)


@pytest.mark.slow
def test_latents_of_other_scans_are_refused(run, tmp_path, capsys):
    draw_scans(tmp_path, each=2)
    stage("diffusion", tmp_path, run, *DIFFUSION_OPTIONS, code=2)
    assert "is of other scans" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = torch.nn.Linear(1, 1)
    plan = Plan(steps=2, batch=1, lr=1.0, every=1)
    with pytest.raises(FloatingPointError, match="nan on the way to step 1"):
        loop.train(model, lambda g: (), lambda m: m.weight.sum() * float("nan"), lambda m: {}, plan, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


@pytest.mark.slow
def test_training_learns(run):
    """Seen: VAE loss 2.4 to 1.5, PSNR of the lagging average 7.9 to 10.5 and 6.8 to 8.3; eps loss 0.96 to 0.60.

    The bounds leave room: with another number of threads bfloat16 rounds differently, and a gain was once below 1 dB.
    """
    first, last = log_of(run / "vae.csv")
    assert last["loss"] < 0.7 * first["loss"]
    assert all(last[key] > first[key] + 0.3 for key in ("psnr_mri", "psnr_ultrasound"))
    _, last = log_of(run / "diffusion.csv")
    assert last["loss"] < 0.8 and last["held_out_loss"] < 0.8  # a guess of eps = 0 has 1


@pytest.mark.slow
def test_latents_have_unit_variance_and_variant_0_is_the_scan(run, scans):
    latents = torch.load(run / "latents.pt")
    assert latents["training"].shape == (10, 2, 4, 8, 8) and latents["held_out"].shape == (5, 4, 8, 8)
    assert latents["training"].float().std() == pytest.approx(1, abs=1e-3)  # float16 rounds each by 5e-4
    model = sd21.load(run / "checkpoint", device="cpu")
    assert model.vae.config.scaling_factor == latents["scaling_factor"]
    pixels = data.load_pixels(data.split(data.find_scans(scans))[0])
    encoded = model.encode(data.to_images(pixels[:2]))
    # The stage computes in bfloat16 (2^-8) through some ten layers; the augmented variant is farther off (0.19).
    assert (encoded - latents["training"][:2, 0]).abs().mean() < 0.05
    assert (encoded - latents["training"][:2, 1]).abs().mean() > 0.1


@pytest.mark.slow
def test_diffusers_loads_the_export_and_agrees(run):
    assert_diffusers_agrees(sd21.load(run / "checkpoint", device="cpu"), run / "checkpoint")


@pytest.mark.slow
def test_export_refuses_an_existing_folder(run, scans, capsys):
    stage("export", scans, run, "--to", str(run / "checkpoint"), code=2)
    assert "exists; move it away" in capsys.readouterr().err


def test_the_learning_rate_warms_up_stays_and_falls_to_zero():
    plan = Plan(steps=10_000, batch=1, lr=2.0)
    rates = [learning_rate(step, plan) for step in (0, 99, 199, 6_999, 8_500, 9_999)]
    assert rates == pytest.approx([0.01, 1, 2, 2, 1, 2 / 3000])


def test_steps_draw_their_own_numbers():
    draws = {(s, k): torch.rand(2, generator=loop.step_generator(s, k)).tolist() for s, k in product((0, 1), (0, 1, 2))}
    assert len({tuple(value) for value in draws.values()}) == 6
    assert draws[1, 2] == torch.rand(2, generator=loop.step_generator(1, 2)).tolist()


def test_psnr_of_a_known_error():
    image = torch.zeros(2, 3, 8, 8)
    # An error of 0.2 in a range of 2 is a tenth of it: 20 dB. Values beyond the range are shown clamped.
    assert psnr(image, image + 0.2).tolist() == pytest.approx([20, 20], abs=1e-4)
    assert psnr(image + 1, image + 3).isinf().all()


@pytest.mark.slow
def test_the_card_measures_the_exported_checkpoint(run, scans, monkeypatch):
    monkeypatch.setattr(card, "CLASSIFIER_STEPS", 2)
    monkeypatch.setattr(card, "SWEEPS", 200)  # random weights take more of them than trained ones
    options = ["--data", str(scans), "--out", str(run / "card"), "--model", str(run / "checkpoint")]
    monkeypatch.setattr(sys, "argv", ["card", *options, "--samples", "16", "--inversions", "1", "--pairs", "0"])
    card.main()
    figures = json.loads((run / "card" / "figures.json").read_text())
    # The stage measures the same scans under bfloat16 autocast, 2^-8 of rounding against errors above 0.1.
    assert figures["reconstruction"]["mri"]["mean"] == pytest.approx(log_of(run / "vae.csv")[-1]["psnr_mri"], abs=0.2)
    assert figures["reconstruction"]["ultrasound"]["scans"] == 3
    inversion = figures["inversion"]
    for prompt in ("exceptional", "null", "text"):
        # The exact inverse stops at the card's tolerance; the reversed solver is no inverse.
        assert inversion[f"{prompt}, joint"]["worst"] <= card.TOLERANCE
        assert inversion[f"{prompt}, joint"]["worst"] < inversion[f"{prompt}, naive"]["median"]
    with Image.open(run / "card" / "samples_malignant.png") as sheet:
        assert sheet.size == (256, 256)  # 4 x 4 pictures of 64 pixels

    # Killed before the last part, it measures that alone; asked for anything else, it measures all.
    del figures["inversion"]
    (run / "card" / "figures.json").write_text(json.dumps(figures))
    again = []
    for part in ("reconstruction", "train_classifier", "inversion_errors"):
        monkeypatch.setattr(card, part, lambda *_, part=part: again.append(part) or inversion)
    card.main()
    assert again == ["inversion_errors"]
    assert json.loads((run / "card" / "figures.json").read_text()) == figures | {"inversion": inversion}
    assert card.kept_figures(run / "card" / "figures.json", {"seed": "1"}) == {"asked": {"seed": "1"}}


def test_the_card_counts_what_the_classifier_tells_apart():
    def classifier(images):
        """Brighter than black: an MRI without tumour ("no"); else a benign tumour."""
        bright = images.mean((1, 2, 3)) > -1
        return 10 * torch.stack([bright, *[torch.zeros_like(bright)] * 2, ~bright, torch.zeros_like(bright)], 1).float()

    classifier.parameters = lambda: iter([torch.zeros(1)])
    images = torch.tensor([0.0, -1, 0, -1]).view(4, 1, 1, 1).expand(-1, 3, 64, 64)
    kinds = torch.tensor([data.KINDS.index(kind) for kind in ("no", "no", "yes", "malignant")])
    figures = card.recognised(classifier, images, kinds)
    assert figures["modality"] == 0.75  # the second is black, so taken for an ultrasound
    assert figures["no"] == {"tumour_or_none": 0.5, "kind": 0.5, "images": 2}
    assert figures["yes"]["tumour_or_none"] == 0
    # Black is taken for a benign tumour: that there is one is right, which one is not.
    assert figures["malignant"] == {"tumour_or_none": 1, "kind": 0, "images": 1}


def test_a_linear_code_keeps_what_varies_and_as_many_numbers_as_the_latents_have():
    # Squares of 8 pixels, 16 numbers each: known scans vary in two rows of a square and nowhere else.
    known = torch.full((9, 16, 16), 100, dtype=torch.uint8)
    varying = [0, 5, 8, 13]
    known[:, varying] = torch.randint(256, (9, 4, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    seen, unseen = known[:1].clone(), known[:1].clone()
    seen[:, varying] = 255 - seen[:, varying]
    unseen[:, 1, 1] += 51  # a fifth of the range, in one of 256 pixels
    found = card.psnr_of_linear_code(known, torch.cat([seen, unseen]), channels=1, factor=2)
    assert found[0] > 100  # float32
    # 1e-2: what is left of float32 and of the components' angle.
    assert found[1].item() == pytest.approx(10 * math.log10(256 * 5**2), abs=1e-2)
    known[:, 3::8] = known[:, ::8].flip(2)  # three rows vary: 24 directions
    more = card.psnr_of_linear_code(known, known, channels=1, factor=2)
    assert more.max() < 40


def damage(path: Path, **changes: object) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


@pytest.mark.slow
def test_a_damaged_run_is_one_line(scans, tmp_path, capsys):
    given, small = ["--data", str(scans), "--out", str(tmp_path / "run")], ["--steps=1", "--batch=1", "--every=1"]
    stages = {
        "vae": ["vae", *given, *small, "--crop=16"],
        "latents": ["latents", *given, "--variants=1"],
        "diffusion": ["diffusion", *given, *small],
        "export": ["export", "--out", str(tmp_path / "run"), "--to", str(tmp_path / "model")],
    }
    for name in ("vae", "latents", "diffusion"):
        assert command_line.main(stages[name]) == 0
    sound = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    run = tmp_path / "run"
    vae = torch.load(run / "vae.pt", weights_only=True)["average"]
    diffusion = torch.load(run / "diffusion.pt", weights_only=True)["average"]
    for stage, act, told in (
        ("vae", lambda: damage(run / "vae.pt", model={}), "vae.pt is damaged"),
        ("vae", lambda: damage(run / "vae.pt", log=[{}]), "vae.pt is damaged"),
        ("export", lambda: torch.save([1], run / "vae.pt"), "vae.pt is damaged"),
        ("latents", lambda: damage(run / "vae.pt", average={}), "vae.pt is damaged"),
        ("latents", lambda: damage(run / "vae.pt", average={k: 0 * v for k, v in vae.items()}), "the deviation 0.0"),
        ("latents", lambda: damage(run / "vae.pt", average={k: v * float("nan") for k, v in vae.items()}), "nan"),
        ("diffusion", lambda: damage(run / "latents.pt", training=[1]), "latents.pt is damaged"),
        ("export", lambda: damage(run / "latents.pt", scaling_factor=float("nan")), "latents.pt says"),
        ("export", lambda: (run / "tokenizer" / "vocab.json").write_text("{}"), "vocab.json is damaged"),
        ("export", lambda: (run / "tokenizer" / "vocab.json").write_text("[" * 100_000), "vocab.json is damaged"),
        ("export", lambda: damage(run / "diffusion.pt", average={}), "does not hold a whole model"),
        (
            "export",
            lambda: damage(run / "diffusion.pt", average={k: v + 1e6 for k, v in diffusion.items()}),
            "is not finite in float16",
        ),
    ):
        for path, content in sound.items():
            path.write_bytes(content)
        act()
        capsys.readouterr()
        assert command_line.main(stages[stage]) in (1, 2), (stage, told)
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and told in said, said
    assert not (tmp_path / "model").exists()
    for path, content in sound.items():
        path.write_bytes(content)
    assert command_line.main(stages["export"]) == 0
