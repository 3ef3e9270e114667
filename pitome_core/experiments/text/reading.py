"""Which words a merged BERT put together, for readers; and which of a text's words people rated by themselves."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

import pitome_core as pc
from pitome_core.experiments.data import sentences
from pitome_core.experiments.models import bert
from pitome_core.experiments.text.grid import TextCell


def groups(encoder: nn.Module, row: Sequence[int], cell: TextCell) -> tuple[list[list[str]], list[str]]:
    """Tokens of one text that ended together, group by group in order of their first member; and those dropped.

    A token by itself is a group of one. Pieces of a word keep their ``##``. ``cell`` is one that assigns tokens (no
    cosine transform).
    """
    pieces = _pieces(row)
    ids, mask = bert.pad([row], next(encoder.parameters()).device)
    with cell.applied(encoder) as running, pc.record(running) as trace, torch.no_grad():
        running(input_ids=ids, attention_mask=mask)
    by_slot: dict[int, list[str]] = {}
    dropped = []
    for piece, slot in zip(pieces, trace.assignment[0].tolist(), strict=True):
        if slot < 0:
            dropped.append(piece)
        else:
            by_slot.setdefault(slot, []).append(piece)
    return list(by_slot.values()), dropped


def in_words(groups_and_dropped: tuple[list[list[str]], list[str]]) -> str:
    """What `groups` gave as a line of Markdown: the groups of more than one token, and dropped tokens struck out."""
    together, dropped = groups_and_dropped
    parts = [" + ".join(f"*{quoted(piece)}*" for piece in group) for group in together if len(group) > 1]
    if dropped:
        parts.append("dropped: " + " ".join(f"~~{quoted(piece)}~~" for piece in dropped))
    return "; ".join(parts) or "nothing"


def words(row: Sequence[int]) -> tuple[list[str], np.ndarray]:
    """The words of a text, and for each token between [CLS] and [SEP] the number of its word ``(N,)``."""
    whole_words: list[str] = []
    owner = []
    for piece in _pieces(row)[1:-1]:
        if not piece.startswith("##") or not whole_words:
            whole_words.append("")
        whole_words[-1] += piece.removeprefix("##")
        owner.append(len(whole_words) - 1)
    return whole_words, np.array(owner, dtype=int)


def by_word(values: Sequence[float], owner: np.ndarray) -> np.ndarray:
    """Means of a value per token ``(N,)`` over the pieces of each word ``(words,)``."""
    return np.bincount(owner, weights=np.asarray(values, dtype=float)) / np.bincount(owner)


def rated(words_of_text: Sequence[str]) -> np.ndarray:
    """Which words carry a sentiment by themselves: those that the lexicon has. ``(words,)`` bool."""
    return np.array([word in sentences.lexicon() for word in words_of_text], dtype=bool)


def _pieces(row: Sequence[int]) -> list[str]:
    return bert.sentence_tokenizer().convert_ids_to_tokens(list(row))


def quoted(text: str) -> str:
    """A text with its punctuation escaped, so that Markdown shows it letter by letter."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text)
