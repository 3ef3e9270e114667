"""Sentence embeddings as the encoder's authors make them: what the tests of the encoder compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pitome_core.experiments.models import bert


def embed(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str],
    batch_size: int = 32,
    max_tokens: int = bert.MAX_TOKENS,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """Sentence embeddings ``(N, 384)`` float32 and numbers of tokens ``(N,)`` int64, on the CPU, one for each text.

    Texts are cut at ``max_tokens``, sorted by length, padded to the longest of their batch and masked, so the
    embedding of a text does not depend on the others (up to rounding). This holds in a merged model, too, because
    there each text loses its share of its own tokens. ``normalize`` brings embeddings to unit length, as the model's
    authors do. No gradient is kept, and the mode of the model (train or eval) is the caller's. Raises ``ValueError``
    for no texts, and as `mean_pool` does for a model merged with ``restore=False``.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts is the string {texts!r}; pass a list: [{texts!r}]")
    if not len(texts):
        raise ValueError("no texts: embed needs at least one")
    rows = bert.encode(texts, max_tokens, tokenizer)

    def read(ids: Tensor, mask: Tensor) -> Tensor:
        return bert.mean_pool(model(input_ids=ids, attention_mask=mask).last_hidden_state, mask)

    means = bert.in_batches(rows, next(model.parameters()).device, read, tokenizer=tokenizer, size=batch_size)
    lengths = torch.tensor([len(row) for row in rows])
    return (nn.functional.normalize(means, dim=1) if normalize else means), lengths
