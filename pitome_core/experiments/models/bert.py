"""The sentence encoder of the embedded tier: all-MiniLM-L6-v2, a BERT of 6 layers, unmodified.

Its files are those of sentence-transformers, in the pinned package. The sentence embedding is the mean of the last
states over all real tokens ([CLS] and [SEP] among them), brought to unit length. Nothing here imports transformers
before a model or a tokenizer is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from pitome_core.experiments import assets, settings

ASSET = "minilm"
MAX_TOKENS = 256  # longer texts are cut, as the model's own sentence-transformers configuration has it


def sentence_encoder(device: torch.device | str | None = None) -> nn.Module:
    """all-MiniLM-L6-v2 as a transformers ``BertModel`` in eval mode, float32.

    6 layers, width 384, 12 heads, 512 positions. It has no pooler: the weights of a pooler in the file are left over
    from another training task, and the sentence embedding does not read them. ``device`` defaults to
    `settings.device`. Raises ``assets.AssetError`` when the weights cannot be had, ``ImportError`` without
    transformers.
    """
    transformers = _transformers()
    from safetensors.torch import load_file

    folder = assets.fetch(ASSET)
    config = transformers.BertConfig.from_pretrained(folder, local_files_only=True)
    # `from_pretrained` would print a progress bar and a report about the pooler. The constructor draws random weights.
    with torch.random.fork_rng(devices=[]):
        model = transformers.BertModel(config, add_pooling_layer=False)
    weights = load_file(folder / "model.safetensors")
    # The positions are the numbers 0 to 511, a buffer that today's BertModel makes itself.
    dropped = ("pooler.dense.weight", "pooler.dense.bias", "embeddings.position_ids")
    model.load_state_dict({name: value for name, value in weights.items() if name not in dropped})
    return model.eval().to(device if device is not None else settings.device())


def sentence_tokenizer() -> Any:
    """The ``BertTokenizer`` of `sentence_encoder`: lower case, WordPiece, [CLS] first and [SEP] last. Errors as there.
    """
    _transformers()  # says what to do where it is missing
    return _read_tokenizer(assets.fetch(ASSET))


@cache
def _read_tokenizer(folder: Path) -> Any:
    """Reading takes half a second, so it is done once. `encode` states all settings of the tokenizer at every call."""
    return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)


def encode(texts: Sequence[str], max_tokens: int | None = MAX_TOKENS, tokenizer: Any = None) -> list[list[int]]:
    """Token ids of every text, [CLS] and [SEP] included, cut at ``max_tokens`` (None: not cut), not padded.

    ``tokenizer`` is one of transformers; it defaults to `sentence_tokenizer`.
    """
    tokenizer = tokenizer or sentence_tokenizer()
    # Stated in full, because the file of our tokenizer asks for 128 tokens, padded and cut.
    options = dict(padding=False, truncation=max_tokens is not None, max_length=max_tokens, verbose=False)
    return tokenizer(list(texts), **options)["input_ids"]


def token_counts(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has, [CLS] and [SEP] included; nothing is cut."""
    return [len(row) for row in encode(texts, None, tokenizer)]


def pad(rows: Sequence[Sequence[int]], device: torch.device, tokenizer: Any = None) -> tuple[Tensor, Tensor]:
    """Token ids and mask (1 = real), ``(B, T)`` long both, of rows of token ids; the tokenizer pads them at the end."""
    batch = (tokenizer or sentence_tokenizer()).pad({"input_ids": [list(row) for row in rows]}, return_tensors="pt")
    return batch["input_ids"].to(device), batch["attention_mask"].to(device)


@torch.no_grad()
def in_batches(
    rows: Sequence[Sequence[int]], device: torch.device, read: Callable[[Tensor, Tensor], Tensor], *,
    tokenizer: Any = None, equal: bool = False, size: int | None = None,
) -> Tensor:
    """``read(ids, mask)`` of all rows of token ids, ``(N, ...)`` float32 in the order of the rows, on the CPU.

    Rows are sorted by length, so that a batch holds rows of about one length and little padding. ``equal``: a batch
    holds rows of exactly one length. ``size`` of a batch: 32 on a CPU, 512 elsewhere. ``tokenizer`` pads, as in `pad`.
    """
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = size or (32 if device.type == "cpu" else 512)
    groups = [list(group) for _, group in groupby(order, key=lambda i: len(rows[i]))] if equal else [order]
    batches = [group[i : i + size] for group in groups for i in range(0, len(group), size)]
    values = [read(*pad([rows[i] for i in batch], device, tokenizer)).float().cpu() for batch in batches]
    return torch.cat(values)[torch.tensor(order).argsort()]


def mean_pool(states: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens: states ``(B, T, C)``, mask ``(B, T)`` (1 = real) -> ``(B, C)``.

    With merged tokens put back in their places this is the mean weighted by size. Raises ``ValueError`` if the two
    disagree on T.
    """
    if states.shape[:2] != mask.shape:
        raise ValueError(
            f"states of shape {tuple(states.shape)} and a mask of shape {tuple(mask.shape)}: merge with restore=True, "
            "so that every token has its place again"
        )
    weight = mask.to(states.dtype).unsqueeze(2)  # (B, T, 1)
    return (states * weight).sum(1) / weight.sum(1)  # (B, C)


def _transformers() -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise ImportError("the sentence encoder needs transformers: pip install 'pitome-core[transformers]'") from error
    return transformers
