"""The text tower is compared with transformers' CLIPTextModel, with the same weights in both."""

import pytest
import torch
from small_models import TEXT_JSON, small_text_encoder
from transformers import CLIPTextConfig, CLIPTextModel

from sd21.config import TextConfig
from sd21.text import TextEncoder

EXACT = {"rtol": 0, "atol": 1e-10}  # measured 1e-15; room for another order of sums, none for another formula


def without_prefix(state):
    """Files say "text_model.*"; whether the library's module does depends on its version."""
    return {key.removeprefix("text_model."): weight for key, weight in state.items() if "position_ids" not in key}


def reference_of(encoder, **changes):
    reference = CLIPTextModel(CLIPTextConfig(**(TEXT_JSON | changes)))
    weights = without_prefix(encoder.state_dict())
    prefix = "text_model." if next(iter(reference.state_dict())).startswith("text_model.") else ""
    keys = reference.load_state_dict({prefix + key: weight for key, weight in weights.items()}, strict=False)
    assert not keys.unexpected_keys and not [key for key in keys.missing_keys if "position_ids" not in key]
    return reference.eval().double()


def ids_of(batch):
    generator = torch.Generator().manual_seed(0)
    return torch.randint(TEXT_JSON["vocab_size"], (batch, 77), generator=generator)


@pytest.mark.parametrize(
    "changes", [{}, {"hidden_act": "quick_gelu"}, {"num_attention_heads": 2, "layer_norm_eps": 1e-3}]
)
@pytest.mark.parametrize("batch", [1, 3])
@torch.no_grad()
def test_matches_transformers(changes, batch):
    encoder = small_text_encoder(**changes).double()
    expected = reference_of(encoder, **changes)(ids_of(batch)).last_hidden_state
    torch.testing.assert_close(encoder(ids_of(batch)), expected, **EXACT)


@torch.no_grad()
def test_without_position_embedding_equal_tokens_give_equal_rows():
    """The exceptional prompt of TF-ICON, by transformers: the position table set to zero."""
    encoder = small_text_encoder().double()
    zeroed = small_text_encoder().double()
    zeroed.text_model.embeddings["position_embedding"].weight.zero_()
    ids = torch.full((1, 77), 42)
    got = encoder(ids, position_embedding=False)
    torch.testing.assert_close(got, reference_of(zeroed)(ids).last_hidden_state, **EXACT)
    torch.testing.assert_close(got, got[:, :1].expand_as(got), **EXACT)
    with_positions = encoder(ids)
    assert not torch.allclose(with_positions, with_positions[:, :1].expand_as(got), atol=1e-2)


@torch.no_grad()
def test_a_token_sees_only_those_before_it():
    encoder, ids = small_text_encoder().double(), ids_of(1)
    changed = ids.clone()
    changed[0, 40] = (ids[0, 40] + 1) % TEXT_JSON["vocab_size"]
    before, after = encoder(ids), encoder(changed)
    torch.testing.assert_close(after[:, :40], before[:, :40], **EXACT)
    assert not torch.allclose(after[:, 40:], before[:, 40:], atol=1e-2)


def test_full_size_matches_by_count_and_keys():
    full = TextConfig()
    with torch.device("meta"):
        encoder = TextEncoder(full)
        reference = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=1024,
                intermediate_size=4096,
                num_hidden_layers=23,
                num_attention_heads=16,
                hidden_act="gelu",
            )
        )
    assert sum(p.numel() for p in encoder.parameters()) == 340_387_840
    assert all(key.startswith("text_model.") for key in encoder.state_dict())
    shapes = {key: weight.shape for key, weight in without_prefix(encoder.state_dict()).items()}
    assert shapes == {key: weight.shape for key, weight in without_prefix(reference.state_dict()).items()}


@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 10 * 2**-9), (torch.float16, 10 * 2**-12)])
@torch.no_grad()
def test_half_precision_stays_near_float32(dtype, bound):
    """Each of some 30 operations in a row rounds to 2^-9 or 2^-12 relative: a factor of 6 if independent."""
    expected = small_text_encoder()(ids_of(2))
    got = small_text_encoder().to(dtype)(ids_of(2))
    assert got.dtype == dtype
    assert 0 < (got.float() - expected).norm() / expected.norm() < bound


@pytest.mark.parametrize(
    "ids, message",
    [
        (torch.zeros(1, 76, dtype=torch.int64), r"ids must be int64 \(B, 77\), got \(1, 76\)"),
        (torch.zeros(77, dtype=torch.int64), r"ids must be int64 \(B, 77\), got \(77,\)"),
        (torch.zeros(1, 77), r"ids must be int64 \(B, 77\), got \(1, 77\) torch.float32"),
        (torch.full((1, 77), 640), r"ids must lie in \[0, 640\), got \[640, 640\]"),
        (torch.full((1, 77), -1), r"ids must lie in \[0, 640\), got \[-1, -1\]"),
    ],
)
def test_wrong_ids_are_one_clear_error(ids, message):
    with pytest.raises(ValueError, match=message):
        small_text_encoder()(ids)
