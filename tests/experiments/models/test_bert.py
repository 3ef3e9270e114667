"""The sentence encoder: the weights as transformers itself reads them, and embeddings that no neighbour changes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from sentence_embedding import embed

import pitome_core as pc
from pitome_core.experiments import assets, settings
from pitome_core.experiments.models import bert

TEXTS = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "good",
    "",
    "Visually imaginative, thematically instructive and thoroughly delightful, it takes us on a roller coaster ride.",
    "A gorgeous, witty, seductive movie, and a gorgeous, witty, seductive cast; " * 6,
    "The film is not bad, but the second half, which nobody asked for, is long, loud and dull, dull, dull. " * 4,
]
FIRST_THREE = [0.8, 0.8, 0.8, 1.0, 1.0, 1.0]
MERGED = {
    "pitome": dict(method="pitome", keep=0.8),
    "released-bert": dict(method="pitome", preset="released-bert", keep=FIRST_THREE),
    "tome": dict(method="tome", keep=FIRST_THREE),
}


@pytest.fixture(scope="module")
def tokenizer():
    return bert.sentence_tokenizer()


@pytest.fixture(scope="module")
def encoder():
    return bert.sentence_encoder("cpu")


def merged(encoder, name):
    return pc.patched(encoder, **MERGED[name]) if name in MERGED else pc.patched(encoder, "tome", keep=1.0)


def test_parity_with_the_model_as_transformers_loads_it(encoder, tokenizer):
    plain = transformers.BertModel.from_pretrained(assets.fetch(bert.ASSET), local_files_only=True).eval()
    words = transformers.BertTokenizerFast(str(assets.fetch(bert.ASSET) / "vocab.txt"), do_lower_case=True)
    embedded, lengths = embed(encoder, tokenizer, TEXTS, normalize=False)
    assert embedded.shape == (len(TEXTS), 384) and embedded.dtype == torch.float32
    for i, text in enumerate(TEXTS):
        ids = torch.tensor([words(text)["input_ids"]])
        assert ids.shape == (1, lengths[i])
        with torch.no_grad():
            expected = plain(input_ids=ids).last_hidden_state[0].mean(0)
        assert (embedded[i] - expected).abs().max() < 5e-6, text  # measured 1e-6
    unit, _ = embed(encoder, tokenizer, TEXTS)
    assert torch.allclose(unit, torch.nn.functional.normalize(embedded, dim=1), atol=1e-6)


def test_similarities_that_sentence_transformers_publishes(encoder, tokenizer):
    """The first example in the documentation of sentence-transformers, to the four digits printed there."""
    embedded, _ = embed(encoder, tokenizer, TEXTS[:3])
    similarity = embedded @ embedded.T
    expected = torch.tensor([[1.0, 0.6660, 0.1046], [0.6660, 1.0, 0.1411], [0.1046, 0.1411, 1.0]])
    assert (similarity - expected).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["whole", *MERGED])
def test_the_other_texts_of_a_batch_change_nothing(encoder, tokenizer, name):
    with merged(encoder, name) as model:
        alone = torch.cat([embed(model, tokenizer, [text])[0] for text in TEXTS])
        for batch_size in (2, 3, 32):
            together, _ = embed(model, tokenizer, TEXTS, batch_size=batch_size)
            assert (together - alone).abs().max() < 1e-5, batch_size  # measured 4e-7
        order = [5, 1, 7, 0, 3, 6, 4, 2, 6]
        shuffled, lengths = embed(model, tokenizer, [TEXTS[i] for i in order], batch_size=4)
        assert (shuffled - alone[order]).abs().max() < 1e-5
        assert lengths.tolist() == bert.token_counts(tokenizer, [TEXTS[i] for i in order])


@pytest.mark.parametrize("name", MERGED)
def test_merging_changes_the_embedding_a_little_and_is_taken_back(encoder, tokenizer, name):
    whole, _ = embed(encoder, tokenizer, TEXTS)
    with merged(encoder, name) as model:
        similarity = (embed(model, tokenizer, TEXTS)[0] * whole).sum(1)
    # "good" and the empty text have nothing that could merge.
    assert (similarity[3:5] > 1 - 1e-6).all()
    assert (similarity[5:] < 1 - 1e-4).all() and (similarity > 0.5).all()
    assert torch.equal(embed(encoder, tokenizer, TEXTS)[0], whole)


def test_with_every_token_kept_nothing_changes(encoder, tokenizer):
    whole, _ = embed(encoder, tokenizer, TEXTS)
    with pc.patched(encoder, "pitome", keep=1.0) as model:
        assert (embed(model, tokenizer, TEXTS)[0] - whole).abs().max() < 1e-6


def test_the_mean_over_restored_tokens_is_weighted_by_size(encoder, tokenizer):
    text = [TEXTS[6]]
    restored, _ = embed(pc.apply(encoder, "tome", keep=0.8), tokenizer, text, normalize=False)
    try:
        pc.apply(encoder, "tome", keep=0.8, restore=False)
        ids = torch.tensor(tokenizer(text)["input_ids"])
        with torch.no_grad(), pc.record(encoder) as trace:
            states = encoder(input_ids=ids).last_hidden_state[0]
        size = trace.layers[-1].size[0]
        assert size.sum() == ids.shape[1] and len(states) < ids.shape[1]
        assert ((states * size[:, None]).sum(0) / size.sum() - restored[0]).abs().max() < 1e-5
        with pytest.raises(ValueError, match=r"mask of shape \(1, .*restore=True"):
            embed(encoder, tokenizer, text)
    finally:
        pc.remove(encoder)


def test_long_texts_are_cut(encoder, tokenizer):
    long = "word " * 600
    assert bert.token_counts(tokenizer, [long, "", "good"]) == [602, 2, 3]
    embedded, lengths = embed(encoder, tokenizer, [long, "word " * 254, "word " * 10])
    assert lengths.tolist() == [256, 256, 12]
    assert torch.allclose(embedded[0], embedded[1], atol=1e-6)
    _, lengths = embed(encoder, tokenizer, [long], max_tokens=64)
    assert lengths.tolist() == [64]


def test_loading_is_quiet_and_leaves_the_random_state_alone(capfd):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = bert.sentence_encoder("cpu")
    embed(model, bert.sentence_tokenizer(), TEXTS)
    assert torch.equal(before, torch.get_rng_state())
    assert capfd.readouterr() == ("", "")
    assert not model.training and model.pooler is None
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_two_encoders_share_no_memory(encoder):
    other = bert.sentence_encoder("cpu")
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert all(parameter.abs().sum() > 0 for parameter in encoder.parameters())


def test_device_comes_from_the_settings(monkeypatch):
    monkeypatch.setattr(settings, "device", lambda: torch.device("meta"))
    assert next(bert.sentence_encoder().parameters()).is_meta


def test_mean_pool():
    states = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 1, 0, 1, 0]])
    expected = torch.stack([row[keep.bool()].mean(0) for row, keep in zip(states, mask, strict=True)])
    assert torch.allclose(bert.mean_pool(states, mask), expected, atol=1e-6)
    assert torch.allclose(bert.mean_pool(states, mask.bool()), expected, atol=1e-6)
    with pytest.raises(ValueError, match=r"states of shape \(3, 4, 4\) and a mask of shape \(3, 5\).*restore=True"):
        bert.mean_pool(states[:, 1:], mask)


def test_embed_errors(encoder, tokenizer):
    with pytest.raises(ValueError, match="no texts: embed needs at least one"):
        embed(encoder, tokenizer, [])
    with pytest.raises(TypeError, match="pass a list"):
        embed(encoder, tokenizer, "good")


def test_without_transformers_the_error_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    for load in (bert.sentence_encoder, bert.sentence_tokenizer):
        with pytest.raises(ImportError, match=r"needs transformers: pip install 'pitome-core\[transformers\]'"):
            load()


def test_the_library_does_not_import_transformers():
    script = "import sys, pitome_core.experiments.models.bert; print('transformers' in sys.modules)"
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("equal", [False, True])
def test_batches_hold_every_row_once_and_one_length_where_asked(tokenizer, equal):
    rows = 3 * bert.encode(TEXTS, tokenizer=tokenizer)
    lengths_read = []

    def read(ids, mask):
        lengths_read.append(mask.sum(1).tolist())
        assert ids.shape == mask.shape and ids.shape[1] == max(lengths_read[-1])
        return mask.sum(1, keepdim=True)

    values = bert.in_batches(rows, torch.device("cpu"), read, equal=equal, size=2)
    assert values[:, 0].tolist() == [len(row) for row in rows]
    assert all(len(lengths) <= 2 for lengths in lengths_read)
    assert all(len(set(lengths)) == 1 for lengths in lengths_read) == equal


def test_padding_is_masked_and_stands_at_the_end(tokenizer):
    ids, mask = bert.pad([[101, 2204, 102], [101, 102]], torch.device("cpu"), tokenizer)
    assert ids.tolist() == [[101, 2204, 102], [101, 102, 0]] and mask.tolist() == [[1, 1, 1], [1, 1, 0]]
