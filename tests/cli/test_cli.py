"""The command `pitome`: what it prints and writes, of models by name and by folder, and one line for every error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import randomize

import pitome_core as pc
from pitome_core.cli import loading, main

timm = pytest.importorskip("timm")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")
SIDE, NAME = 64, "vit_tiny_patch16_224"
MODEL = dict(img_size=SIDE, embed_dim=48, num_heads=3, depth=3, num_classes=7)
FAST = ["--keeps", ".8", "--seconds", "0"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Forty pictures of blocks in two folders, and a file that is none."""
    place, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    (place / "more").mkdir()
    for i in range(40):
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3)).astype(np.uint8))
        coarse.resize((90, 80), Image.NEAREST).save(place / ("more" if i % 2 else ".") / f"{i:02d}.png")
    (place / "notes.txt").write_text("no picture")
    return place


@pytest.fixture(scope="module")
def timm_folder(tmp_path_factory) -> Path:
    """A small ViT as timm stores models."""
    place, model = tmp_path_factory.mktemp("timm"), randomize(timm.create_model(NAME, **MODEL))
    torch.save(model.state_dict(), place / "pytorch_model.bin")
    shown = {"input_size": [3, SIDE, SIDE], "mean": [0.5] * 3, "std": [0.5] * 3, "num_classes": 7, "crop_pct": 0.9}
    config = {"architecture": NAME, "model_args": MODEL, "num_classes": 7, "pretrained_cfg": shown}
    (place / "config.json").write_text(json.dumps(config))
    return place


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory) -> Path:
    transformers = pytest.importorskip("transformers", minversion="5.23")
    config = transformers.ViTConfig(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, num_labels=5,
                                    intermediate_size=48, image_size=32, patch_size=8)
    place = tmp_path_factory.mktemp("transformers")
    randomize(transformers.ViTForImageClassification(config)).save_pretrained(place)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def open_clip_folder(tmp_path_factory) -> Path:
    open_clip = pytest.importorskip("open_clip")
    tower = dict(image_size=32, patch_size=8, width=48, head_width=16, layers=3)
    text = dict(context_length=12, vocab_size=50, width=32, heads=2, layers=2)
    place = tmp_path_factory.mktemp("open_clip")
    model = randomize(open_clip.model.CLIP(24, tower, text))
    torch.save(model.state_dict(), place / "open_clip_pytorch_model.bin")
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": tower, "text_cfg": text},
              "preprocess_cfg": {"mean": [0.4] * 3, "std": [0.3] * 3, "size": [32, 32]}}
    (place / "open_clip_config.json").write_text(json.dumps(config))
    return place


def run(*arguments) -> int:
    return main([str(part) for part in arguments])


def one_error(capsys) -> str:
    """The line that went wrong, the last of the error stream."""
    return capsys.readouterr().err.splitlines()[-1]


def test_a_diagnosis_of_a_folder(timm_folder, folder, tmp_path, capsys):
    assert run("diagnose", timm_folder, folder, *FAST, "--json", tmp_path / "f.json", "--html", tmp_path / "f.html",
               "--target", ".4") == 0
    out = capsys.readouterr()
    assert f"{timm_folder}: VisionTransformer, 40 items, cpu" in out.out and "random weights" not in out.out
    assert "batch 3 of 3" in out.err and "batch" not in out.out
    loaded = loading.load(str(timm_folder), "pretrained")
    images = loaded.prepare(loading.pictures_in(folder, 64))
    assert images.shape == (40, 3, SIDE, SIDE)
    found = pc.diagnose(loaded.model, images, keeps=(0.8,), seconds=0, target=0.4)
    assert json.loads((tmp_path / "f.json").read_text()) == json.loads(json.dumps(found.to_dict()))
    page = (tmp_path / "f.html").read_text()
    assert page.count("data:image/png;base64,") == 1 + 2 * 4 and page.count('class="pair"') == 4
    assert found.settings[0].method in page
    sources = re.findall(r'(?:src|href)="(.{5})', page)
    assert set(sources) == {"data:"} and "url(" not in page and "<script" not in page and "@import" not in page


def test_random_weights_are_called_random(timm_folder, folder, tmp_path, capsys):
    assert run("diagnose", timm_folder, folder, *FAST, "--count", "5", "--weights", "random", "--html",
               tmp_path / "f.html") == 0
    page = (tmp_path / "f.html").read_text()
    assert "with random weights" in capsys.readouterr().out.splitlines()[0] and "with random weights" in page
    assert 1 <= page.count('class="pair"') <= 4


def test_folders_of_transformers_and_open_clip(transformers_folder, open_clip_folder, folder, tmp_path, capsys):
    for place, answers in ((transformers_folder, True), (open_clip_folder, False)):
        assert run("diagnose", place, folder, *FAST, "--count", "6", "--json", tmp_path / "f.json") == 0
        found = json.loads((tmp_path / "f.json").read_text())
        assert found["count"] == 6 and (found["settings"][0]["same"] is not None) == answers
        assert found["recommended"] is None and "at least 35" in found["reason"]
        assert run("map", folder / "00.png", "--model", place, "--output", tmp_path / "map.png") == 0
        assert Image.open(tmp_path / "map.png").size == (32, 32)
        assert run("flops", place, "--keep", ".5", "--method", "tome") == 0
    assert "GMACs" in capsys.readouterr().out


def test_weights_are_read_or_random(timm_folder, transformers_folder, open_clip_folder):
    for place in (timm_folder, transformers_folder, open_clip_folder):
        first, second, dry, again = (loading.load(str(place), weights).model.state_dict()
                                     for weights in ("pretrained", "pretrained", "random", "random"))
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert all(torch.equal(dry[name], again[name]) for name in dry)
        assert not all(torch.equal(first[name], dry[name]) for name in first)


def test_counts(timm_folder, tmp_path, capsys):
    assert run("flops", timm_folder, "--keep", ".75", "--method", "tome", "--json", tmp_path / "f.json") == 0
    numbers = json.loads((tmp_path / "f.json").read_text())
    model = timm.create_model(NAME, **MODEL)
    assert numbers["whole"] == pc.flops(model).total
    assert numbers["merged"] == pc.flops(pc.apply(model, "tome", 0.75)).total
    assert numbers["tokens"] == list(pc.flops(model).tokens)
    printed = capsys.readouterr().out
    assert "17 13 10 8" in printed and f", {100 * numbers['share']:.1f} %\n" in printed


def test_counts_of_fewer_steps(timm_folder, tmp_path, capsys):
    counted = "flops", timm_folder, "--keep", ".9", "--method", "tome", "--json", tmp_path / "f.json"
    assert run(*counted) == 0
    each = json.loads((tmp_path / "f.json").read_text())
    assert run(*counted, "--every", "3") == 0
    numbers = json.loads((tmp_path / "f.json").read_text())
    model = pc.apply(timm.create_model(NAME, **MODEL), "tome", 0.9, every=3)
    assert (numbers["merged"], numbers["tokens"]) == (pc.flops(model).total, list(pc.flops(model).tokens))
    assert (each["every"], numbers["every"]) == (1, 3) and numbers["merged"] < each["merged"]
    assert numbers["tokens"][1] == numbers["tokens"][-1] == each["tokens"][-1]
    first, second = capsys.readouterr().out.split("tokens by layer")[:2]
    assert "in one of 3 layers" not in first and "at keep 0.9, in one of 3 layers: " in second


def test_a_map_is_the_token_map(timm_folder, folder, tmp_path):
    assert run("map", folder / "00.png", "--model", timm_folder, "--method", "tome", "--keep", ".6", "--layer", "1",
               "--output", tmp_path / "map.png") == 0
    loaded = loading.load(str(timm_folder), "pretrained")
    image = loaded.prepare([folder / "00.png"])
    with torch.no_grad(), pc.record(pc.apply(loaded.model, "tome", 0.6)) as trace:
        loaded.model(image)
    assert (np.asarray(Image.open(tmp_path / "map.png")) == pc.token_map(trace, loaded.seen(image)[0], 1)).all()


def test_pictures_are_spread_over_the_folder(folder):
    names = [path.name for path in loading.pictures_in(folder, 4)]
    assert len(set(names)) == 4 and len(loading.pictures_in(folder, 1000)) == 40
    assert {path.parent for path in loading.pictures_in(folder, 4)} == {folder, folder / "more"}


@pytest.mark.parametrize("arguments, line", [
    (["diagnose", "no_such_model", "{folder}"], "timm has no model 'no_such_model'"),
    (["diagnose", "./no_such", "{folder}"], "there is no folder ./no_such"),
    (["diagnose", "{folder}", "{folder}"], "holds no model"),
    (["diagnose", "{timm}", "{folder}/none"], "is no folder"),
    (["diagnose", "{timm}", "{timm}"], "has no pictures"),
    (["diagnose", "{timm}", "{folder}", "--count", "0"], "--count must be 1 or more"),
    (["diagnose", "{timm}", "{folder}", "--methods", "tomes"], "unknown method 'tomes'"),
    (["diagnose", "{timm}", "{folder}", "--json", "{folder}/none/f.json"], "there is no folder"),
    (["flops", "{timm}", "--keep", ".1"], "can merge in one layer"),
    (["flops", "{timm}", "--keep", ".9", "--every", "0"], "every must be 1 or more, got 0"),
    (["flops", "{timm}", "--keep", ".9", "--every", "4"], "every=4: the model has 3 layers"),
    (["flops", "resnet18", "--keep", ".9"], "is not supported"),
    (["map", "{folder}/notes.txt", "--model", "{timm}", "--output", "{folder}/../m.png"], "cannot be read"),
    (["map", "{folder}/00.png", "--model", "{timm}", "--layer", "9", "--output", "{folder}/../m.png"], "no layer 9"),
])
def test_errors_are_one_line(arguments, line, timm_folder, folder, capsys):
    assert run(*(part.format(folder=folder, timm=timm_folder) for part in arguments)) == 2
    said = one_error(capsys)
    assert said.startswith(f"pitome {arguments[0]}: ") and line in said


def test_weights_that_cannot_be_fetched(monkeypatch, folder, capsys):
    create = timm.create_model

    def without_network(name, pretrained=False, **options):
        if pretrained:
            raise OSError("We couldn't connect to\n'https://huggingface.co'")
        return create(name, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", without_network)
    assert run("diagnose", NAME, folder, *FAST) == 2
    said = one_error(capsys)
    assert f"the weights of {NAME} cannot be had" in said and "--weights random" in said


def test_the_command_as_a_program():
    """`python -m pitome_core.cli`; the console script calls the same function. Libraries are imported when needed."""
    heavy = ("timm", "transformers", "open_clip", "PIL", "matplotlib", "pitome_core.experiments")
    code = f"""
import runpy, sys
sys.argv = ["pitome", "diagnose", "any", "no_such_folder"]
try:
    runpy.run_module("pitome_core.cli", run_name="__main__")
finally:
    print([name for name in {heavy} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout.strip() == "[]"
    assert done.stderr == "pitome diagnose: no_such_folder is no folder\n"
