"""The dual encoder: open_clip builds it from its folder alone, and its towers are ours to the last bit that counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from PIL import Image
from sentence_embedding import embed

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core.experiments import assets
from pitome_core.experiments.data import pairs
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.models import bert, dual_encoder, vit

pytest.importorskip("open_clip")
pytestmark = pytest.mark.usefixtures("on_the_processor")
POOL = {"token": 0, "avg": 1}


@pytest.fixture(scope="module")
def heads():
    return dual_encoder.Heads().requires_grad_(False)


@pytest.fixture(scope="module")
def made(heads):
    return dual_encoder.dual_encoder(heads)


@pytest.fixture(scope="module")
def sample():
    """Four pictures, as arrays, with their texts."""
    found = pairs.pairs("dev", count=4)
    return list(pairs.views(found.things, "photographs", "dev")), list(found.texts)


@pytest.fixture(scope="module")
def images(sample):
    return preprocess(sample[0])


def test_preprocessing_is_the_towers_own(made, sample, images):
    """For pictures of the right size nothing is left but the normalisation; for others the size is right."""
    _, preprocess, _ = made
    own = torch.stack([preprocess(Image.fromarray(picture)) for picture in sample[0]])
    torch.testing.assert_close(own, images, rtol=0, atol=1e-6)
    assert preprocess(Image.new("L", (300, 500))).shape == (3, 224, 224)


def test_image_tower_equals_the_towers(made, heads, images):
    """Class token and mean patch to 1e-5, and `encode_image` is the head on the class token."""
    model, *_ = made
    with torch.no_grad():
        tokens = vit.vit_small(224, "cpu").forward_features(images)
        found = dual_encoder.image_features(model.visual.trunk, images)
        torch.testing.assert_close(found[:, 0], tokens[:, 0], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[:, 1], tokens[:, 1:].mean(dim=1), rtol=0, atol=1e-5)
        encoded = model.encode_image(images, normalize=True)
        torch.testing.assert_close(encoded, heads.images(found), rtol=0, atol=1e-5)
        assert encoded.shape == (4, dual_encoder.WIDTH) and encoded.std(dim=0).mean() > 1e-4


def test_text_tower_equals_the_sentence_encoder(made, heads, sample):
    """Mean-pooled states to 1e-5, whatever the padding, and `encode_text` is the head on them."""
    model, _, tokenizer = made
    texts = sample[1] + ["a much longer text, " * 9 + "so that the others are padded"]
    ids = tokenizer(texts)
    assert ids.shape == (len(texts), dual_encoder.CONTEXT)
    encoder, words = bert.sentence_encoder("cpu"), bert.sentence_tokenizer()
    expected, lengths = embed(encoder, words, texts, normalize=False)
    assert (ids != 0).sum(dim=1).tolist() == lengths.tolist()
    with torch.no_grad():
        found = dual_encoder.text_features(model.text, ids)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(dual_encoder.text_features(model.text, ids[:1]), found[:1], rtol=0, atol=1e-5)
        torch.testing.assert_close(model.encode_text(ids, normalize=True), heads.texts(found), rtol=0, atol=1e-5)


def test_the_folder_needs_no_code_of_ours(heads, made, sample, images, tmp_path):
    """Another process with open_clip alone gets the same features, and the temperature."""
    model, _, tokenizer = made
    torch.save({"images": images[:2], "texts": sample[1][:3]}, tmp_path / "in.pt")
    code = f"""
import sys, torch, open_clip
name = "local-dir:{dual_encoder.assemble(heads)}"
model, _, preprocess = open_clip.create_model_and_transforms(name)
model.eval()
given = torch.load("in.pt")
with torch.no_grad():
    out = [model.encode_image(given["images"]), model.encode_text(open_clip.get_tokenizer(name)(given["texts"])),
           model.logit_scale]
torch.save([*out, [m for m in sys.modules if m.startswith("pitome")]], "out.pt")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    image, text, scale, ours = torch.load(tmp_path / "out.pt", weights_only=False)
    with torch.no_grad():
        torch.testing.assert_close(image, model.encode_image(images[:2]), rtol=0, atol=1e-6)
        torch.testing.assert_close(text, model.encode_text(tokenizer(sample[1][:3])), rtol=0, atol=1e-6)
    assert ours == [] and scale.item() == pytest.approx(heads.logit_scale.item())


def _linked(source, target):
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copyfile(source, target)


def test_the_folder_is_made_once_and_verified(heads, made, monkeypatch, tmp_path):
    """The second call makes nothing; other heads get another folder; a damaged folder is noticed."""
    folder = dual_encoder.assemble(heads)
    monkeypatch.setattr(dual_encoder, "_fill", lambda *_: pytest.fail("made again"))
    assert dual_encoder.assemble(heads) == folder
    config = json.loads((folder / dual_encoder.CONFIG).read_text())
    assert config["model_cfg"]["vision_cfg"]["timm_model_name"] == f"local-dir:{folder / 'image'}"
    source = json.loads((folder / assets.MANIFEST).read_text())["source"]
    copy = tmp_path / "copy"  # other processes may read the folder itself
    shutil.copytree(folder, copy, copy_function=_linked)
    assert assets.store.check(copy, source) == "ready"
    inner = copy / "image" / "config.json"
    changed = inner.read_bytes().replace(b"224", b"238")
    inner.unlink()
    inner.write_bytes(changed)
    assert assets.store.check(copy, source) == "damaged", "files in subfolders are verified too"


@pytest.mark.parametrize("pool", dual_encoder.POOLS)
def test_heads_survive_their_file(tmp_path, pool):
    """Half precision on disk, under open_clip's names, small enough to be shipped three times."""
    heads = dual_encoder.Heads(pool=pool, seed=3)
    path = tmp_path / "some" / "heads.safetensors"
    dual_encoder.save(heads, path)
    again = dual_encoder.load(path)
    assert again.pool == pool and path.stat().st_size < 2 * 2**20
    for name, value in again.stored().items():
        torch.testing.assert_close(value, heads.stored()[name], rtol=1e-3, atol=1e-6)
    assert sorted(again.stored()) == sorted(
        [f"visual.head.mlp.{part}" for part in ("fc1.weight", "fc1.bias", "fc2.weight")]
        + ["text.proj.0.weight", "text.proj.2.weight", "logit_scale"])
    features = torch.randn(5, 2, 384, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(again.images(features), again.images(features * torch.tensor(
        [[[1.0 if i == POOL[pool] else 7.0] for i in range(2)]])))


def test_one_folder_serves_all_heads(made, images, sample, monkeypatch):
    """Other heads, nothing new in the cache, and what comes out is theirs."""
    other = dual_encoder.Heads(seed=8).requires_grad_(False)
    monkeypatch.setattr(dual_encoder, "_fill", lambda *_: pytest.fail("made anew"))
    model, _, tokenizer = dual_encoder.dual_encoder(other)
    ids = tokenizer(sample[1])
    with torch.no_grad():
        of_images = dual_encoder.image_features(model.visual.trunk, images[:1])
        torch.testing.assert_close(model.encode_image(images[:1], True), other.images(of_images), rtol=0, atol=1e-5)
        of_texts = dual_encoder.text_features(model.text, ids)
        torch.testing.assert_close(model.encode_text(ids, True), other.texts(of_texts), rtol=0, atol=1e-5)
    assert not torch.allclose(made[0].visual.head.mlp.fc1.weight, model.visual.head.mlp.fc1.weight)


def test_heads_are_drawn_from_their_seed():
    """The same seed the same heads; the caller's generator stays untouched."""
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first, second, other = (dual_encoder.Heads(seed=seed).stored() for seed in (4, 4, 5))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["text.proj.0.weight"], other["text.proj.0.weight"])


def test_what_is_no_heads_file_is_refused(tmp_path):
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors holds no heads with a pool: it has weight"):
        dual_encoder.load(tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="'mean'; choose one of token, avg"):
        dual_encoder.Heads(pool="mean")


@pytest.mark.parametrize("pool", dual_encoder.POOLS)
@pytest.mark.parametrize("method", ["pitome", "random_prune"])
def test_features_of_a_merged_tower_are_what_its_head_reads(made, images, pool, method):
    """`image_features` of a merged or pruned trunk equal what timm's own pooling hands to the head."""
    model, *_ = made
    trunk = model.visual.trunk
    before = trunk.global_pool
    trunk.global_pool = pool
    try:
        with torch.no_grad(), pc.patched(model, method, keep=0.8):
            found = dual_encoder.image_features(trunk, images)[:, POOL[pool]]
            torch.testing.assert_close(found, trunk(images), rtol=1e-4, atol=1e-5)
    finally:
        trunk.global_pool = before
