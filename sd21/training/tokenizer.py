"""This module makes a small tokenizer in CLIP's format, and learns its merges from the captions. It works on text alone
and needs neither torch nor the networks."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from ..files import write_json, write_text

CONTEXT_LENGTH = 77
START, END, PAD = "<|startoftext|>", "<|endoftext|>", "!"  # as SD 2.1 has them; "!" is id 0


def byte_symbols() -> list[str]:
    """The 256 printable characters that stand for the 256 bytes in GPT-2's and CLIP's vocabularies, in CLIP's order."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(b) for b in printable] + [chr(256 + i) for i in range(256 - len(printable))]


def learn_merges(texts: Iterable[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent pair first, until every word of the (ASCII) texts is one token.

    Pairs that occur equally often come in alphabetical order.
    """
    counts = Counter(word for text in texts for word in re.findall(r"[a-z]+|[^a-z\s]+", text.lower()))
    words = {word: (*word[:-1], word[-1] + "</w>") for word in counts}
    merges = []
    while True:
        pairs = Counter()
        for word, symbols in words.items():
            for pair in pairwise(symbols):
                pairs[pair] += counts[word]
        if not pairs:
            return merges
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        words = {word: merge(symbols, best) for word, symbols in words.items()}


def merge(symbols: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The symbols, in which each occurrence of the pair, from the left, is joined."""
    joined, i = [], 0
    while i < len(symbols):
        step = 2 if symbols[i : i + 2] == pair else 1
        joined.append("".join(symbols[i : i + step]))
        i += step
    return tuple(joined)


def write_tokenizer(folder: Path, texts: Iterable[str]) -> dict[str, int]:
    """Write the files that transformers' CLIPTokenizer loads; returns the vocabulary, token to id."""
    merges = learn_merges(texts)
    symbols = byte_symbols()
    tokens = [*symbols, *(s + "</w>" for s in symbols), *("".join(pair) for pair in merges), START, END]
    vocab = {token: i for i, token in enumerate(tokens)}
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": PAD}
    config = special | {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": CONTEXT_LENGTH,
        "do_lower_case": True,
        "add_prefix_space": False,
        "errors": "replace",
    }
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "vocab.json", json.dumps(vocab, ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    write_text(folder / "merges.txt", "\n".join(lines) + "\n")
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
    return vocab
