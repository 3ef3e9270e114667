"""Which words a merged BERT put together, for readers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

import pitome_core as pc
from pitome_core.experiments import text_models, text_towers
from pitome_core.experiments.text_grid import TextCell


def groups(encoder: nn.Module, row: Sequence[int], cell: TextCell) -> tuple[list[list[str]], list[str]]:
    """Tokens of one text that ended together, group by group in order of their first member; and those dropped.

    A token by itself is a group of one. Pieces of a word keep their ``##``. ``cell`` is one that assigns tokens (no
    cosine transform).
    """
    pieces = text_towers.sentence_tokenizer().convert_ids_to_tokens(list(row))
    ids, mask = text_models.padded([row], next(encoder.parameters()).device)
    with cell.applied(encoder) as running, pc.record(running) as trace, torch.no_grad():
        running(input_ids=ids, attention_mask=mask)
    together: dict[int, list[str]] = {}
    dropped = []
    for piece, slot in zip(pieces, trace.assignment[0].tolist(), strict=True):
        dropped.append(piece) if slot < 0 else together.setdefault(slot, []).append(piece)
    return list(together.values()), dropped


def in_words(found: tuple[list[list[str]], list[str]]) -> str:
    """The groups of more than one token, as a line of Markdown; dropped tokens struck out."""
    shared = [" + ".join(f"*{_plain(piece)}*" for piece in group) for group in found[0] if len(group) > 1]
    dropped = " ".join(f"~~{_plain(piece)}~~" for piece in found[1])
    return "; ".join(shared + ([f"dropped: {dropped}"] if dropped else [])) or "nothing"


def _plain(piece: str) -> str:
    """Without what Markdown or a table would read as its own."""
    return piece.replace("|", "/").replace("*", "∗").replace("_", "‗").replace("`", "'").replace("~", "∼")
