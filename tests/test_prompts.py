"""The exceptional prompt: one row of the text tower for 77, and what that is worth through the whole network."""

import pytest
import torch
from small_models import write_small_pipeline
from transformers import CLIPTextModel

import sd21
from composition.prompts import exceptional_context, exceptional_token, normal_context, null_context


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_pipeline(tmp_path_factory.mktemp("prompts") / "model")


@pytest.fixture(scope="module")
def model(folder):
    return sd21.load(folder, device="cpu")


def test_the_token_is_tf_icons_or_the_like_piece_of_a_small_vocabulary():
    assert exceptional_token(49408) == 7788
    assert exceptional_token(7788) == 512 + 7274 * 7276 // 48894  # its last id is 7787
    assert exceptional_token(640) == 512 + 18  # 126 pieces of words follow the bytes
    assert exceptional_token(515) == 512  # its only piece
    with pytest.raises(ValueError, match="514 tokens has no pieces of words"):
        exceptional_token(514)
    assert exceptional_token(640, 639) == 639
    with pytest.raises(ValueError, match="640 is not one of the model's 640 tokens, 0 to 639"):
        exceptional_token(640, 640)


@torch.no_grad()
def test_one_row_is_every_row_of_the_literal_construction(model, folder):
    """77 equal ids through transformers' tower of the same weights, its positional embeddings zeroed."""
    token = exceptional_token(model.text_encoder.config.vocab_size)
    reference = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    positions = [weight for name, weight in reference.named_parameters() if "position_embedding" in name]
    assert len(positions) == 1
    positions[0].zero_()
    rows = reference(torch.full((1, 77), token)).last_hidden_state
    row = exceptional_context(model, token)
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
def test_normal_and_null_contexts(model):
    contexts = normal_context(model, ["a brain scan", None, "an image"], 100)
    assert contexts.shape == (3, 77, 48)
    torch.testing.assert_close(contexts[[0, 2]], model.embed(["a brain scan", "an image"]), rtol=0, atol=1e-6)
    assert torch.equal(contexts[1], exceptional_context(model, 100)[0].expand(77, -1))
    assert torch.equal(null_context(model, 2), model.embed([""]).expand(2, -1, -1))
