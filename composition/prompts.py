"""The three prompts of the method as contexts for the network: exceptional, normal and null.

The exceptional prompt (TF-ICON; paper, section 4.2 and Fig. 4) gives every position the same token and no positional
embedding. All rows of the text tower's output are then equal, and attention over n copies of one key is attention over
that one: so one row stands for all of them here, and cross attention costs next to nothing.
"""

from __future__ import annotations

import torch

PROMPT_LENGTH = 77
# TF-ICON's choice, in the vocabulary of SD's text towers.
TOKEN, VOCABULARY = 7788, 49408
# A CLIP vocabulary begins with the bytes, within a word and at its end, and ends with two special tokens.
BYTES, SPECIAL = 512, 2


def exceptional_token(vocabulary: int, token: int | None = None) -> int:
    """The id of the exceptional prompt's token: `token`, or for None 7788 where a vocabulary has that many ids.

    A smaller one uses the id at the same relative place among its pieces of words, which is what 7788 is.

    Raises ValueError for a token that the vocabulary does not have, and for a vocabulary without pieces of words.
    """
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
    if token >= vocabulary:
        raise ValueError(
            f"exceptional_token {token} is not one of the model's {vocabulary} tokens, 0 to {vocabulary - 1}"
        )
    return token


def exceptional_context(model, token: int) -> torch.Tensor:
    """The exceptional prompt as a context (1, 1, D): the one row that stands for 77 equal ones."""
    ids = torch.full((1, PROMPT_LENGTH), token, dtype=torch.long, device=model.device)
    return model.text_encoder(ids, position_embedding=False)[:, :1]


def normal_context(model, prompts: list[str | None], token: int) -> torch.Tensor:
    """The text prompts as a context (B, 77, D). None stands for the exceptional prompt, then in all its 77 rows."""
    context = model.embed([prompt or "" for prompt in prompts])
    for row, prompt in enumerate(prompts):
        if prompt is None:
            context[row] = exceptional_context(model, token)[0]
    return context


def null_context(model, count: int) -> torch.Tensor:
    """The null prompt of Eq. 6, the empty text, as a context (B, 77, D)."""
    return model.embed([""]).expand(count, -1, -1)
