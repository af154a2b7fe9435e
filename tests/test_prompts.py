"""One row of the text tower stands for the 77 of the exceptional prompt. These tests check that, in the tower and
through the whole network."""

import re
from types import SimpleNamespace

import pytest
import torch
from transformers import CLIPTextModel

import sd21
from composition.prompts import exceptional_context, exceptional_token, null_context, text_context, token_positions


@pytest.fixture(scope="module")
def model(folder):
    return sd21.load(folder, device="cpu")


def test_the_token_is_tf_icons_or_the_like_piece_of_a_small_vocabulary():
    def token(vocabulary, chosen=None):
        tower = SimpleNamespace(config=SimpleNamespace(vocab_size=vocabulary))
        return exceptional_token(SimpleNamespace(text_encoder=tower), chosen)

    assert token(49408) == 7788
    assert token(7788) == 512 + 7274 * 7276 // 48894  # its last id is 7787
    assert token(640) == 512 + 18  # 126 pieces of words follow the bytes
    assert token(515) == 512  # its only piece
    with pytest.raises(ValueError, match="514 tokens has no pieces of words"):
        token(514)
    assert token(640, 639) == 639
    for wrong in (640, -1):
        with pytest.raises(ValueError, match=f"{wrong} is not one of the model's 640 tokens, 0 to 639"):
            token(640, wrong)


@torch.no_grad()
def test_one_row_is_every_row_of_the_literal_construction(model, folder):
    """77 equal ids through transformers' tower of the same weights, its positional embeddings zeroed."""
    token = exceptional_token(model)
    reference = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    positions = [weight for name, weight in reference.named_parameters() if "position_embedding" in name]
    assert len(positions) == 1
    positions[0].zero_()
    rows = reference(torch.full((1, 77), token)).last_hidden_state
    row = exceptional_context(model)
    assert row.shape == (1, 1, 48)
    # Entries of order one in float32: some ten roundings of 1e-7.
    torch.testing.assert_close(row.expand(1, 77, -1), rows, rtol=0, atol=2e-6)
    with_positions = model.text_encoder(torch.full((1, 77), token))
    assert (with_positions - row).abs().max() > 0.1  # the positions do matter where they are not left out


@torch.no_grad()
def test_one_row_is_worth_77_through_the_whole_unet(model):
    row = exceptional_context(model, 100)
    x, t = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([30.0, 700.5])
    one, many = model.unet(x, t, row), model.unet(x, t, row.expand(1, 77, -1))
    # Both are float32 networks of order one; the softmax over 77 equal keys adds a few roundings of 1e-7.
    torch.testing.assert_close(one, many, rtol=0, atol=1e-5)
    assert (one - model.unet(x, t, row + 0.1)).abs().max() > 1e-3  # the context matters in the first place


@torch.no_grad()
def test_text_and_null_contexts(model):
    assert torch.equal(text_context(model, "a brain scan"), model.embed(["a brain scan"]))
    assert torch.equal(text_context(model, None, 100), exceptional_context(model, 100).expand(1, 77, -1))
    assert torch.equal(null_context(model), model.embed([""])) and null_context(model).shape == (1, 77, 48)


def test_the_positions_of_a_word_are_those_of_its_tokens(model):
    prompt = "an mri scan of a brain tumour, a tumour"
    ids = model.tokenizer(prompt).input_ids
    positions = token_positions(model, prompt, "tumour")
    assert len(positions) == 2 and {ids[n] for n in positions} == {model.tokenizer("tumour").input_ids[1]}
    several = token_positions(model, prompt, "mri scan")
    assert [ids[n] for n in several] == model.tokenizer("mri scan").input_ids[1:-1] and several[0] == 2
    split = token_positions(model, "a scan of qz", "qz")  # a word that no token spells whole
    assert model.tokenizer.convert_ids_to_tokens([model.tokenizer("a scan of qz").input_ids[n] for n in split]) == [
        "q",
        "z</w>",
    ]
    assert token_positions(model, prompt, "TUMOUR") == positions
    assert token_positions(model, "a a a a", "a a") == [1, 2, 3, 4]  # no position comes twice
    for missing in ("breast", "tum", "", "r", "mour", "<|endoftext|>"):
        with pytest.raises(ValueError, match=f"does not hold the word {re.escape(repr(missing))}"):
            token_positions(model, prompt, missing)
    # The text tower reads the start, 75 tokens and the end.
    assert token_positions(model, "a " * 74 + "tumour", "tumour") == [75]
    with pytest.raises(ValueError, match="among its first 75 tokens"):
        token_positions(model, "a " * 75 + "tumour", "tumour")
