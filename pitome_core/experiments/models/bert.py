"""The sentence encoder of the embedded tier: all-MiniLM-L6-v2, a BERT of 6 layers, unmodified.

Its files are those of sentence-transformers, in the pinned package. The sentence embedding is the mean of the last
states over all real tokens ([CLS] and [SEP] among them), brought to unit length.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pitome_core.experiments import assets, settings

if TYPE_CHECKING:
    from transformers import BertModel, BertTokenizer

ASSET = "minilm"
MAX_TOKENS = 256  # longer texts are cut, as the model's own sentence-transformers configuration has it


def sentence_encoder(device: torch.device | str | None = None) -> BertModel:
    """all-MiniLM-L6-v2 as a transformers ``BertModel`` in eval mode, float32.

    6 layers, width 384, 12 heads, 512 positions. It has no pooler: the weights in the file are what is left of another
    training task, and the sentence embedding does not read them. ``device`` defaults to `settings.device`. Raises
    ``assets.AssetError`` when the weights cannot be had, ``ImportError`` without transformers.
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


def sentence_tokenizer() -> BertTokenizer:
    """The tokenizer of `sentence_encoder`: lower case, WordPiece, [CLS] first and [SEP] last. Errors as there."""
    _transformers()  # says what to do where it is missing
    return _read_tokenizer(assets.fetch(ASSET))


@cache
def _read_tokenizer(folder: Path) -> BertTokenizer:
    """Read once: that takes half a second, and `_encode` states all of its settings at every call."""
    return _transformers().AutoTokenizer.from_pretrained(folder, local_files_only=True)


def token_counts(tokenizer: BertTokenizer, texts: Sequence[str]) -> list[int]:
    """How many tokens each text has, [CLS] and [SEP] included; nothing is cut."""
    return [len(ids) for ids in _encode(tokenizer, texts, None)]


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
    return (states * weight).sum(1) / weight.sum(1)


@torch.no_grad()
def token_metrics(model: nn.Module, ids: Tensor) -> tuple[list[Tensor], Tensor]:
    """What merging reads in the whole model: averaged keys, and its last states.

    For ids ``(B, T)`` without padding and a bare BERT: ``(B, T - 2, C / H)`` per layer, without [CLS] and [SEP], and
    states ``(B, T, C)``.
    """
    keys: list[Tensor] = []
    parts = [layer.attention.self for layer in model.encoder.layer]
    hooks = [part.key.register_forward_hook(lambda m, a, out: keys.append(out)) for part in parts]
    try:
        last = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    finally:
        for hook in hooks:
            hook.remove()
    return [key[:, 1:-1].unflatten(2, (parts[0].num_attention_heads, -1)).mean(dim=2) for key in keys], last


def embed(
    model: nn.Module,
    tokenizer: BertTokenizer,
    texts: Sequence[str],
    batch_size: int = 32,
    max_tokens: int = MAX_TOKENS,
    normalize: bool = True,
) -> tuple[Tensor, Tensor]:
    """Sentence embeddings ``(N, 384)`` float32 and numbers of tokens ``(N,)`` int64, on the CPU, one for each text.

    Texts are cut at ``max_tokens``, sorted by length, padded to the longest of their batch and masked, so the
    embedding of a text does not depend on the others (up to rounding), also in a merged model: there, each text loses
    its share of its own tokens. ``normalize`` brings embeddings to unit length, as the model's authors do. No gradient
    is kept, and the mode of the model (train or eval) is the caller's. Raises ``ValueError`` for no texts, and as
    `mean_pool` does for a model merged with ``restore=False``.
    """
    if isinstance(texts, str):
        raise TypeError(f"texts is the string {texts!r}; pass a list: [{texts!r}]")
    if not len(texts):
        raise ValueError("no texts: embed needs at least one")
    rows = _encode(tokenizer, texts, max_tokens)
    lengths = torch.tensor([len(row) for row in rows])
    order = lengths.argsort(stable=True)
    device = next(model.parameters()).device
    means = []
    with torch.no_grad():
        for chosen in order.split(batch_size):
            batch = tokenizer.pad({"input_ids": [rows[i] for i in chosen.tolist()]}, return_tensors="pt").to(device)
            states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
            means.append(mean_pool(states, batch["attention_mask"]).float().cpu())
    embedded = torch.cat(means)[order.argsort()]
    return (nn.functional.normalize(embedded, dim=1) if normalize else embedded), lengths


def _encode(tokenizer: BertTokenizer, texts: Sequence[str], max_tokens: int | None) -> list[list[int]]:
    """Token ids, unpadded. Stated in full: the file of the tokenizer asks for 128 tokens, padded and cut."""
    how = dict(padding=False, truncation=max_tokens is not None, max_length=max_tokens, verbose=False)
    return tokenizer(list(texts), **how)["input_ids"]


def _transformers():
    try:
        import transformers
    except ImportError as error:
        raise ImportError("the sentence encoder needs transformers: pip install 'pitome-core[transformers]'") from error
    return transformers
