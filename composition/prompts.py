"""This module makes the contexts of the three prompts, exceptional, text and null, and finds a word in a prompt.

The exceptional prompt (TF-ICON; paper, section 4.2 and Fig. 4) gives every position the same token and no positional
embedding. All rows of the text tower's output are then equal, and attention over n copies of one key is attention over
that one: so one row stands for all of them here, and cross attention costs next to nothing.
"""

from __future__ import annotations

import torch

from solvers.finite import check_finite

from .canvas import OVERFLOWN
from .model import Model

PROMPT_LENGTH = 77
# TF-ICON's choice, in the vocabulary of SD's text towers.
TOKEN, VOCABULARY = 7788, 49408
# A CLIP vocabulary begins with the bytes, within a word and at its end, and ends with two special tokens.
BYTES, SPECIAL = 512, 2
CONTEXT = "the context that the text tower makes of a prompt"


def exceptional_token(model: Model, token: int | None = None) -> int:
    """The id of the exceptional prompt's token: `token`, or for None 7788 where the vocabulary has that many ids.

    A smaller vocabulary uses the id at the same relative place among its pieces of words, which is what 7788 is.
    Raises ValueError for a token that the vocabulary does not have, and for a vocabulary without pieces of words.
    """
    vocabulary = model.text_encoder.config.vocab_size
    if token is None and vocabulary > TOKEN:
        return TOKEN
    if token is None:
        pieces = vocabulary - BYTES - SPECIAL
        if pieces < 1:
            raise ValueError(
                f"a vocabulary of {vocabulary} tokens has no pieces of words beside its {BYTES} bytes: choose the "
                f"exceptional prompt's token yourself, exceptional_token=0..{vocabulary - 1}"
            )
        return BYTES + pieces * (TOKEN - BYTES) // (VOCABULARY - BYTES - SPECIAL)
    if not 0 <= token < vocabulary:
        raise ValueError(
            f"exceptional_token {token} is not one of the model's {vocabulary} tokens, 0 to {vocabulary - 1}"
        )
    return token


@torch.no_grad()
def exceptional_context(model: Model, token: int | None = None) -> torch.Tensor:
    """The exceptional prompt as a context (1, 1, D): the one row that stands for 77 equal ones.

    token: as for `exceptional_token`, whose errors it raises.
    """
    token = exceptional_token(model, token)
    ids = torch.full((1, PROMPT_LENGTH), token, dtype=torch.long, device=model.device)
    return check_finite(model.text_encoder(ids, position_embedding=False)[:, :1], CONTEXT, OVERFLOWN)


def text_context(model: Model, prompt: str | None, token: int | None = None) -> torch.Tensor:
    """The text prompt as a context (1, 77, D). None stands for the exceptional prompt, then in all its 77 rows."""
    if prompt is None:
        return exceptional_context(model, token).repeat(1, PROMPT_LENGTH, 1)
    return check_finite(model.embed([prompt]), CONTEXT, OVERFLOWN)


def null_context(model: Model) -> torch.Tensor:
    """The null prompt of Eq. 6, the empty text, as a context (1, 77, D)."""
    return check_finite(model.embed([""]), CONTEXT, OVERFLOWN)


def token_positions(model: Model, prompt: str, word: str) -> list[int]:
    """The positions, among the 77 rows of the prompt's context, of the tokens that spell `word`, wherever it stands.

    They index the last axis of a cross-attention map. `word` may be several words, in any case; a word that the
    tokenizer splits has several positions. Raises ValueError where the prompt, as far as the text tower reads it, does
    not hold the whole word.
    """
    ids = model.tokenizer(prompt, truncation=True, max_length=PROMPT_LENGTH).input_ids[:-1]
    wanted = model.tokenizer(word).input_ids[1:-1]  # the tokenizer puts its start and end around every text
    ends_word = [token.endswith("</w>") for token in model.tokenizer.convert_ids_to_tokens(ids)]
    positions, n = [], 1
    while wanted and n + len(wanted) <= len(ids):
        begins_word = n == 1 or ends_word[n - 1]
        if begins_word and ids[n : n + len(wanted)] == wanted:
            positions += range(n, n + len(wanted))
            n += len(wanted)
        else:
            n += 1
    if not positions:
        raise ValueError(
            f"the prompt {prompt!r} does not hold the word {word!r}, as far as the text tower reads it: give a whole "
            f"word of it, among its first {PROMPT_LENGTH - 2} tokens"
        )
    return positions
