"""These tests check the split, the captions and the tokenizer of the small checkpoint's training."""

from pathlib import Path

import pytest
import torch
from drawn_scans import draw_scans
from transformers import CLIPTokenizer

from sd21.training import data
from sd21.training.diffusion import token_ids
from sd21.training.tokenizer import END, PAD, START, byte_symbols, learn_merges, write_tokenizer

SCANS = Path(__file__).parent.parent.parent / "shared" / "data"
CAPTIONS = [caption for captions in data.CAPTIONS.values() for caption in captions]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return folder, write_tokenizer(folder, CAPTIONS)


@pytest.fixture(scope="module")
def real_scans():
    if not SCANS.exists():
        pytest.skip(f"no scans at {SCANS}; they are never part of the project")
    scans = data.find_scans(SCANS)
    return scans, data.twin_groups(data.load_pixels(scans, 128))


@pytest.mark.slow
def test_no_held_out_scan_has_a_twin_in_the_training_set(real_scans):
    scans, groups = real_scans
    training, held_out = data.split(scans)
    assert {scan.kind for scan in training} == {scan.kind for scan in held_out} == set(data.KINDS)
    group = {scan.name: g for scan, g in zip(scans, groups, strict=True)}
    assert not {group[scan.name] for scan in training} & {group[scan.name] for scan in held_out}


@pytest.mark.slow
def test_the_committed_list_is_what_the_rule_chooses(real_scans):
    assert data.choose_held_out(*real_scans) == data.HELD_OUT_LIST.read_text().splitlines()


def test_twins_are_found_in_another_contrast_mirrored_and_in_chains():
    rng = torch.Generator().manual_seed(0)
    scans = torch.randint(40, 200, (3, 64, 64), generator=rng, dtype=torch.uint8)
    dimmed, mirrored = (scans[0] * 0.5).to(torch.uint8) + 30, scans[1].flip(1)
    assert data.twin_groups(torch.stack([*scans, dimmed, mirrored, dimmed.flip(1)])) == [0, 1, 2, 0, 1, 0]


def test_scans_are_found_in_a_fixed_order_without_masks(tmp_path):
    draw_scans(tmp_path, each=2)
    scans = data.find_scans(tmp_path)
    assert [scan.name for scan in scans[:3]] == ["no/no (0).png", "no/no (1).png", "yes/yes (0).png"]
    assert len(scans) == 2 * len(data.KINDS)
    assert data.load_pixels(scans, 32).shape == (10, 32, 32)


def test_a_missing_class_is_named(tmp_path):
    draw_scans(tmp_path, each=1)
    (tmp_path / "br35h/yes/yes (0).png").unlink()
    (tmp_path / "br35h/yes/yes (0)_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"br35h/yes"):
        data.find_scans(tmp_path)


def test_classes_are_drawn_by_the_square_root_of_their_size():
    scans = [data.Scan(Path(f"{i}.png"), kind) for kind, n in (("no", 16), ("benign", 4)) for i in range(n)]
    weights = data.sampling_weights(scans)
    assert weights[:16].sum() / weights[16:].sum() == pytest.approx(2)  # sqrt(16 / 4)


def test_augmented_images_stay_images_and_are_drawn_from_the_generator_alone():
    images = torch.linspace(-1, 1, 2 * 3 * 32 * 32).view(2, 3, 32, 32)
    once, again, other = (data.augment(images, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(once, again) and not torch.equal(once, other)
    assert once.shape == images.shape and once.abs().max() <= 1


def test_captions_name_the_prompts_of_the_paper_and_call_no_benign_tumour_cancer():
    assert data.CAPTIONS["yes"][0] == "An MRI scan of a cancerous brain"
    assert data.CAPTIONS["malignant"][0] == "An ultrasound image of a cancerous breast"
    assert not any("cancer" in caption for kind in ("no", "normal", "benign") for caption in data.CAPTIONS[kind])
    assert len({len(captions) for captions in data.CAPTIONS.values()}) == 1  # the training indexes them as a table


def test_merges_by_frequency_then_alphabet():
    # "a b" occurs three times, "ab c" twice; "a b" and "x y" once each.
    assert learn_merges(["abc abc abd"])[:2] == [("a", "b"), ("ab", "c</w>")]
    assert learn_merges(["xy ab"]) == [("a", "b</w>"), ("x", "y</w>")]


def test_tokenizer_round_trip_through_transformers(tokenizer_folder):
    folder, vocabulary = tokenizer_folder
    tokenizer = CLIPTokenizer.from_pretrained(folder)
    assert tokenizer.model_max_length == 77
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == (PAD, START, END)
    assert vocabulary[PAD] == 0  # as in SD 2.1, whose text tower pads with zeros
    for text in [*CAPTIONS, "A lésion of 12 mm, T2-weighted."]:  # words, accents and digits never seen
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") == text.lower().replace(" ", "")


def test_training_ids_are_those_of_the_tokenizer(tokenizer_folder):
    folder, vocabulary = tokenizer_folder
    texts = ["", *CAPTIONS]
    expected = CLIPTokenizer.from_pretrained(folder)(texts, padding="max_length", max_length=77).input_ids
    assert token_ids(vocabulary, texts).tolist() == expected


def test_every_byte_has_its_symbol():
    assert len(set(byte_symbols())) == 256 and byte_symbols()[0] == PAD
