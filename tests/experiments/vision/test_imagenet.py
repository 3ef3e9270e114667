"""The paper tier of `vision`: a tiny folder of images and a tiny timm checkpoint go through the very same code."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import processes
import pytest
import torch
from filelock import FileLock
from PIL import Image
from small_models import randomize

import pitome_core as pc
from pitome_core.experiments.__main__ import main
from pitome_core.experiments.records import results
from pitome_core.experiments.runs import grid
from pitome_core.experiments.vision import imagenet

timm = pytest.importorskip("timm")
pytest.importorskip("accelerate")
SHAPE = dict(img_size=64, embed_dim=48, num_heads=3, depth=3)
CLASSES = ("n01", "n02", "n10")
GRID = ["--methods", "pitome", "tome", "--keep", "0.9"]
KEYS = ["whole", "pitome@0.9", "pitome@0.9/off", "tome@0.9", "tome@0.9/off"]


@pytest.fixture(autouse=True)
def paper_tier(monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "paper")  # the command line sets it: put back afterwards
    monkeypatch.setenv("PITOME_DEVICE", "cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """3 classes x 8 images: RGB, grey, CMYK, palette with transparency, RGBA, one pixel high; JPEG and PNG."""
    root, generator = tmp_path_factory.mktemp("data") / "val", np.random.default_rng(0)
    for name in CLASSES:
        (root / name).mkdir(parents=True)
        for i, number in enumerate((0, 1, 2, 3, 4, 5, 6, 10)):  # natural order, not alphabetical, puts 10 last
            coarse = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8))
            picture = coarse.resize((60 + 9 * i, 90 - 5 * i), Image.Resampling.BICUBIC)
            mode = ("RGB", "L", "CMYK", "P", "RGBA", "RGB", "L", "RGB")[i]
            picture = picture.convert("RGB").resize((70, 1)) if number == 5 else picture.convert(mode)
            ending = {"P": "png", "RGBA": "PNG", "CMYK": "jpg"}.get(mode, "png" if number == 6 else "JPEG")
            picture.save(root / name / f"{number}.{ending}", **({"transparency": 3} if mode == "P" else {}))
    return root


def _save(where: Path, name: str = "vit_tiny_patch16_224", classes: int = 3, **overrides) -> Path:
    shape = {**SHAPE, **overrides} if name.startswith("vit") else overrides
    model = randomize(timm.create_model(name, num_classes=classes, **shape))
    timm.models.save_for_hf(model, where, safe_serialization=True)
    return where


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A classifier of 3 classes for 64 x 64 pixels, saved as timm saves it."""
    return _save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def words(folder, tiny, tmp_path):
    """words(*extra, **replaced) -> the command line; a later argument wins."""

    def make(*extra, model=f"local-dir:{tiny}", data=folder, output=tmp_path / "out", grid=GRID) -> list[str]:
        return ["vision", "--profile", "paper", "--model", str(model), "--data", str(data), "--output", str(output),
                "--batch-size", "3", "--shard", "7", "--workers", "0", *grid, *map(str, extra)]

    return make


def _record(output: Path, name: str = "tiny") -> results.Record:
    return results.Record.load(output / f"vision-imagenet-{name}.json")


def _outcomes(record: results.Record) -> tuple:
    return record.items, {key: cell["outcomes"] for key, cell in record.cells.items()}


@pytest.fixture(scope="module")
def whole_run(folder, tiny, tmp_path_factory):
    """The record of one process that nothing interrupted."""
    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_DEVICE", "cpu")
        patch.setenv("PITOME_PROFILE", "paper")
        assert main(["vision", "--profile", "paper", "--model", f"local-dir:{tiny}", "--data", str(folder), "--output",
                     str(output), "--batch-size", "3", "--shard", "7", "--workers", "0", *GRID]) == 0
    assert list(output.iterdir()) == [output / "vision-imagenet-tiny.json"]  # no part and no lock is left
    return _record(output)


def _plain_loop(folder: Path, tiny: Path, key: str, dtype: torch.dtype = torch.float32) -> tuple[list, list]:
    """Image by image, with timm's own transform: (right, among the first two)."""
    model = timm.create_model(f"local-dir:{tiny}", pretrained=True).eval()
    config = timm.data.resolve_model_data_config(model)
    if key == "lower-resolution@48px":
        config["input_size"] = (3, 48, 48)
        model = imagenet.grid.lower_resolution(model, 48)
    elif key != "whole":
        pc.apply(model, key.partition("@")[0], keep=0.9)
    transform, right, near = timm.data.create_transform(**config, is_training=False), [], []
    for target, name in enumerate(CLASSES):
        for file in sorted((folder / name).iterdir(), key=lambda path: int(path.stem)):
            image = transform(Image.open(file).convert("RGB"))[None]
            with torch.inference_mode(), torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                order = model(image)[0].float().argsort(descending=True).tolist()
            right.append(float(order[0] == target))
            near.append(float(target in order[:2]))
    return right, near


def test_accuracy_is_that_of_a_plain_loop(folder, tiny, words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(imagenet, "TOP", 2)  # all are among five of three
    arms = ["--methods", "pitome", "lower-resolution", "--keep", "0.9", "--workers", "2"]
    assert main(words(*arms)) == 0
    record = _record(tmp_path / "out")
    assert len(record) == 24 and record.items["id"] == list(range(24))
    for key in ("whole", "pitome@0.9", "lower-resolution@48px"):
        right, near = _plain_loop(folder, tiny, key)
        assert record.outcome(key, "correct").tolist() == right
        assert record.outcome(key, "top5").tolist() == near
        assert record.cells[key]["top1"] == pytest.approx(np.mean(right), abs=1e-6)
        assert record.cells[key]["scored"] == 24 and record.cells[key]["unreadable"] == []
    assert 0 < np.mean(right) < 1  # the comparison could fail
    table = capsys.readouterr().out
    assert "minus whole model" in table and "pitome@0.9/off" in table and f"{100 * np.mean(right):.2f}" in table
    text = record.path.read_text()
    assert str(tmp_path) not in text and str(folder) not in text and str(tiny.parent) not in text


def test_bfloat16_is_autocast(folder, tiny, words, tmp_path):
    assert main(words("--dtype", "bfloat16")) == 0
    record = _record(tmp_path / "out", "tiny-bfloat16")
    assert record.header["dtype"] == "bfloat16" and list(record.cells) == KEYS
    right, _ = _plain_loop(folder, tiny, "tome@0.9", torch.bfloat16)
    # Kernels of other batch sizes may round in another way.
    assert results.disagreement(right, record.outcome("tome@0.9", "correct"), 0)[0] <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cuda_agrees_with_the_processor(dtype, words, tmp_path, whole_run, monkeypatch):
    monkeypatch.setenv("PITOME_DEVICE", "cuda")
    assert main(words("--dtype", dtype, "--workers", "2")) == 0
    record = _record(tmp_path / "out", "tiny" if dtype == "float32" else "tiny-bfloat16")
    assert record.cells["whole"]["devices"] == [torch.cuda.get_device_name()]
    for key in KEYS:
        flips, _ = results.disagreement(whole_run.outcome(key, "correct"), record.outcome(key, "correct"), 0)
        assert flips <= (1 if dtype == "float32" else 4), key


def test_the_grid_of_the_protocol_runs(words, tmp_path):
    assert main(words("--keep", "0.8", "--batch-size", "24", "--shard", "24", grid=[])) == 0
    cells = grid.cells(None, [0.8], img_size=64, patch=16)
    assert list(_record(tmp_path / "out").cells) == [cell.key for cell in cells]


def _watched(monkeypatch) -> list:
    """The units that this process scores from now on."""
    seen, score = [], imagenet._score_unit
    monkeypatch.setattr(imagenet, "_score_unit", lambda unit, *more: seen.append(unit) or score(unit, *more))
    return seen


@pytest.mark.slow
def test_two_processes_give_the_record_of_one(words, tmp_path, whole_run):
    printed = processes.in_two_processes(words())
    assert "20 of 20 shards to score in 2 processes" in printed and printed.count("minus whole model") == 1
    record = _record(tmp_path / "out")
    assert _outcomes(record) == _outcomes(whole_run) and record.header == whole_run.header
    assert list(record.cells) == list(whole_run.cells) and len(record.runs) == 1


@pytest.mark.slow
def test_a_killed_run_loses_and_repeats_no_image(words, tmp_path, whole_run, monkeypatch, capsys):
    command = words("--shard", "1")
    process = subprocess.Popen(**processes.command(command), start_new_session=True, stdout=subprocess.DEVNULL)
    parts, deadline = tmp_path / "out" / "vision-imagenet-tiny.parts", time.monotonic() + 240
    while len(list(parts.glob("*/*/shard-*.json"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    left = {path.relative_to(parts): path.read_bytes() for path in parts.glob("*/*/shard-*.json")}
    begun = (tmp_path / "out" / "vision-imagenet-tiny.json").exists()
    recorded = 24 * len(_record(tmp_path / "out").cells) if begun else 0
    assert 2 <= len(left) + recorded < 24 * len(KEYS)
    for part in map(json.loads, left.values()):
        assert part["stop"] == part["start"] + 1 and part["correct"] in "01"
    seen = _watched(monkeypatch)
    assert main(command) == 0
    assert f"{24 * len(KEYS) - recorded - len(left)} of {24 * len(KEYS) - recorded} shards" in capsys.readouterr().out
    seen = [(unit.cell.key, unit.start) for unit in seen]
    before = {(part["cell"], part["start"]) for part in map(json.loads, left.values())}
    assert len(seen) == len(set(seen)) and not before & set(seen)
    record = _record(tmp_path / "out")
    assert _outcomes(record) == _outcomes(whole_run) and not parts.exists()
    # Once more: nothing is left to do.
    text = record.path.read_text()
    assert main(command) == 0 and record.path.read_text() == text
    assert "0 of 0 shards" in capsys.readouterr().out


def test_unreadable_images_are_named_counted_and_left_out(folder, words, tmp_path, whole_run, capsys):
    data = tmp_path / "val"
    shutil.copytree(folder, data)
    whole = (data / "n02" / "0.JPEG").read_bytes()
    (data / "n02" / "0.JPEG").write_bytes(whole[: len(whole) // 2])
    (data / "n10" / "3.png").write_bytes(b"no picture")
    arguments = words("--methods", "tome", data=data)
    assert main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.err.count("cannot read n02/0.JPEG (OSError: image file is truncated") == 1  # once, not per cell
    assert captured.err.count("cannot read n10/3.png (UnidentifiedImageError") == 1
    assert "2 of 24 images could not be read and are left out: n02/0.JPEG, n10/3.png" in captured.err
    record, rest = _record(tmp_path / "out"), np.delete(np.arange(24), [8, 19])
    for key in ("whole", "tome@0.9"):
        values = record.outcome(key, "correct")
        assert np.flatnonzero(np.isnan(values)).tolist() == [8, 19]
        assert values[rest].tolist() == whole_run.outcome(key, "correct")[rest].tolist()
        cell = record.cells[key]
        assert cell["scored"] == 22 and cell["unreadable"] == ["n02/0.JPEG", "n10/3.png"]
        assert cell["top1"] == pytest.approx(values[rest].mean(), abs=1e-6)
    assert record.difference("tome@0.9", "whole", "correct", skip_missing=True).items == 22
    with pytest.raises(ValueError, match="2 of 24"):
        record.difference("tome@0.9", "whole", "correct")
    assert str(tmp_path) not in record.path.read_text()
    # Asked again, the record still says so; mended, it is whole.
    assert main(arguments) == 1
    shutil.copytree(folder, data, dirs_exist_ok=True)
    assert main([*arguments, "--again"]) == 0
    mended = _record(tmp_path / "out").outcome("whole", "correct")
    assert mended.tolist() == whole_run.outcome("whole", "correct").tolist()


def test_a_folder_of_unreadable_images_is_no_crash(folder, words, tmp_path, capsys):
    for name in CLASSES:
        (tmp_path / "val" / name).mkdir(parents=True)
        (tmp_path / "val" / name / "0.jpg").write_bytes(b"")
    assert main(words("--methods", "tome", data=tmp_path / "val")) == 1
    assert "no image could be read" in capsys.readouterr().out
    assert _record(tmp_path / "out").cells["whole"]["top1"] is None


def test_an_estimate_keeps_its_shard(words, tmp_path, whole_run, capsys):
    assert main(words("--estimate")) == 0
    out = capsys.readouterr().out
    assert "20 of 20 shards" in out and "estimate:" in out
    assert not (tmp_path / "out" / "vision-imagenet-tiny.json").exists()
    assert main(words()) == 0
    assert "19 of 20 shards" in capsys.readouterr().out
    assert _outcomes(_record(tmp_path / "out")) == _outcomes(whole_run)


def test_parts_of_other_runs_are_kept_apart(words, tmp_path, whole_run, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(imagenet, "code_of", lambda *_: "other")
        assert main(words("--estimate")) == 0
    (old,) = (tmp_path / "out").glob("*.parts/*/*/shard-*.json")
    kept = old.read_bytes()
    capsys.readouterr()
    assert main(words()) == 0
    captured = capsys.readouterr()
    assert "20 of 20 shards" in captured.out
    assert "1 finished shards of another run (different code) are kept in" in captured.err
    assert old.read_bytes() == kept and _outcomes(_record(tmp_path / "out")) == _outcomes(whole_run)


def test_a_damaged_part_is_an_error(words, tmp_path, capsys):
    assert main(words("--estimate")) == 0
    (part,) = (tmp_path / "out").glob("*.parts/*/*/shard-*.json")
    part.write_text(part.read_text().replace('"stop": 7', '"stop": 8'))
    assert main(words()) == 2
    assert "shard-00000.json is damaged or of another run: delete it" in capsys.readouterr().err
    part.unlink()
    assert main(words()) == 0


def test_parts_that_the_record_has_already_are_not_taken_for_new(words, tmp_path, whole_run, monkeypatch):
    with monkeypatch.context() as patch:  # as if killed between writing the record and removing the parts
        patch.setattr(imagenet.shutil, "rmtree", lambda *_, **__: None)
        assert main(words()) == 0
    parts = tmp_path / "out" / "vision-imagenet-tiny.parts"
    assert len(list(parts.glob("*/*/shard-*.json"))) == 20
    seen = _watched(monkeypatch)
    assert main(words("--again")) == 0
    assert len(seen) == 20 and not parts.exists() and _outcomes(_record(tmp_path / "out")) == _outcomes(whole_run)


def test_one_run_at_a_time(words, tmp_path, capsys):
    parts = tmp_path / "out" / "vision-imagenet-tiny.parts"
    parts.mkdir(parents=True)
    with FileLock(parts / ".lock"):
        assert main(words()) == 2
    assert "another run is working in" in capsys.readouterr().err


def test_another_model_or_data_set_is_not_added_to_a_record(folder, words, tmp_path, capsys):
    assert main(words("--methods", "tome")) == 0
    (tmp_path / "val").mkdir()
    for name in CLASSES:
        shutil.copytree(folder / name, tmp_path / "val" / name)
    (tmp_path / "val" / "n01" / "10.JPEG").unlink()
    assert main(words("--methods", "tome", data=tmp_path / "val")) == 2
    assert "is of another run" in capsys.readouterr().err


def test_the_test_split_is_logged_before_it_is_scored(words, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "writable", lambda committed: tmp_path / ("results" if committed else "scratch"))
    arguments = words("--split", "test", "--methods", "tome")
    arguments = [word for word in arguments if word not in ("--output", str(tmp_path / "out"))]
    assert main(arguments) == 0
    (entry,) = json.loads((tmp_path / "results" / "test_log.json").read_text())
    assert entry["task"] == "imagenet-tiny" and entry["tier"] == "paper" and entry["items"] == 24 and entry["new"] == 3
    assert _record(tmp_path / "results" / "paper").header["split"] == "validation"


def test_a_class_map_places_some_of_the_classes(folder, words, tmp_path, whole_run, capsys):
    for name in ("n02", "n10"):
        shutil.copytree(folder / name, tmp_path / "val" / name)
    assert main(words("--methods", "tome", data=tmp_path / "val")) == 2
    assert "has 3 classes and the data have 2" in capsys.readouterr().err
    (tmp_path / "classes.txt").write_text("n01\nn02\nn10\n")
    assert main(words("--methods", "tome", "--class-map", tmp_path / "classes.txt", data=tmp_path / "val")) == 0
    found = _record(tmp_path / "out").outcome("whole", "correct")
    assert found.tolist() == whole_run.outcome("whole", "correct")[8:].tolist()
    (tmp_path / "classes.txt").write_text("n01\nn03\nn10\n")
    assert main(words("--class-map", tmp_path / "classes.txt", data=tmp_path / "val")) == 2
    assert "1 of 2 folders are not in" in capsys.readouterr().err


def test_a_checkpoint_as_fine_tuned_mae_has_it(folder, words, tmp_path, capsys):
    pooled = _save(tmp_path / "pooled", global_pool="avg")
    model = timm.create_model(f"local-dir:{pooled}", pretrained=True)
    torch.save({"model": model.state_dict()}, tmp_path / "fine.pth")
    shape = [f"{name}={value}" for name, value in SHAPE.items()]
    given = ["--checkpoint", tmp_path / "fine.pth", "--methods", "tome"]
    assert main(words(*given, "--model-args", "global_pool=avg", *shape, model="vit_tiny_patch16_224")) == 0
    assert main(words("--methods", "tome", model=f"local-dir:{pooled}")) == 0
    found, expected = _record(tmp_path / "out", "vit_tiny_patch16_224"), _record(tmp_path / "out", "pooled")
    assert found.header["weights"] == expected.header["weights"]
    assert _outcomes(found) == _outcomes(expected)
    assert main(words(*given, "--model-args", *shape, model="vit_tiny_patch16_224")) == 2  # class token, other norm
    assert "could not be loaded" in capsys.readouterr().err


def test_a_data_set_of_the_hub(folder, words, tmp_path, whole_run, monkeypatch):
    monkeypatch.setattr(pytest.importorskip("datasets").config, "HF_DATASETS_CACHE", tmp_path / "cache")
    import pyarrow
    import pyarrow.parquet

    files = [sorted((folder / name).iterdir(), key=lambda path: int(path.stem)) for name in CLASSES]
    images = [{"path": file.name, "bytes": file.read_bytes()} for group in files for file in group]
    images[8]["bytes"] = b"no picture"
    labels = [target for target, group in enumerate(files) for _ in group]
    (tmp_path / "hub").mkdir()
    table = pyarrow.table({"image": images, "label": labels})
    pyarrow.parquet.write_table(table, tmp_path / "hub" / "validation-00000-of-00001.parquet")
    assert main(words("--methods", "tome", data=f"hub:{tmp_path / 'hub'}:validation")) == 1
    found, expected = (r.outcome("tome@0.9", "correct") for r in (_record(tmp_path / "out"), whole_run))
    assert np.isnan(found[8]) and np.delete(found, 8).tolist() == np.delete(expected, 8).tolist()
    assert _record(tmp_path / "out").cells["whole"]["unreadable"] == ["0.JPEG"]


def test_published_models_are_what_the_table_says():
    names = set(timm.list_pretrained())
    for short, known in imagenet.PUBLISHED.items():
        assert known.name in names
        assert timm.get_pretrained_cfg(known.name).num_classes == (0 if known.checkpoint else 1000)
        assert bool(known.checkpoint) == short.startswith("mae")


@pytest.mark.parametrize("short", ["mae-b", "mae-l", "vit_huge_patch14_224.mae"])
def test_weights_of_pretraining_are_refused_before_they_are_fetched(words, short, capsys):
    assert main(words(model=short)) == 2
    assert "has no classifier" in (found := capsys.readouterr().err) and "--checkpoint mae_finetuned_vit_" in found


@pytest.mark.parametrize(
    "replaced, extra, message",
    [
        (dict(model="deit-xs"), [], "no model 'deit-xs' in timm.*list_pretrained.*for example deit-"),
        (dict(model="deit_small_patch16_224.nope"), [], "no weights 'nope' .* deit_small_patch16_224.fb_in1k"),
        (dict(model="local-dir:nowhere"), [], "no nowhere/config.json.*save_for_hf"),
        (dict(model="headless"), [], "headless has no classifier.*--checkpoint FILE.*--model-args"),
        (dict(model="convolutional"), [], "convolutional cannot be merged: .*Supported"),
        (dict(model="four"), [], "four has 4 classes and the data have 3.*--class-map"),
        (dict(data="nowhere"), [], "no folder nowhere.*hub:NAME"),
        (dict(data="empty"), [], "0 images .*one folder of images per class"),
        (dict(data="flat"), [], "0 images .*one folder of images per class"),
        ({}, ["--keep", "1.5"], "keep 1.5 must lie between 0 and 1"),
        ({}, ["--checkpoint", "nowhere.pth"], "no checkpoint nowhere.pth"),
        ({}, ["--model", "deit-s", "deit-t", "--checkpoint", "x"], "one --checkpoint for 2 models"),
        ({}, ["--model-args", "depth"], "takes NAME=VALUE, got 'depth'"),
        ({}, ["--model-args", "num_classes=5"], "was trained for 3 classes, not 5"),
        ({}, ["--model-args", "flavour=5"], "could not be loaded .*flavour"),
        ({}, ["--class-map", "nowhere.txt"], "no class map nowhere.txt"),
        ({}, ["--shard", "0"], "--shard 0 is below 1"),
    ],
)
def test_refusals_name_the_remedy(words, tmp_path, monkeypatch, replaced, extra, message, capsys):
    monkeypatch.chdir(tmp_path)
    make = {
        "headless": lambda: _save(tmp_path / "headless", classes=0),
        "convolutional": lambda: _save(tmp_path / "convolutional", "test_resnet"),
        "four": lambda: _save(tmp_path / "four", classes=4),
    }
    if (name := replaced.get("model")) in make:
        replaced = {"model": f"local-dir:{make[name]()}"}
    (tmp_path / "empty" / "n01").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "flat" / "0.png")
    assert main(words(*extra, **replaced)) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert re.search(f"^error: .*{message}", captured.err, re.DOTALL), captured.err


def test_what_is_not_installed_is_named(words, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "datasets", None)
        assert main(words(data="hub:somebody/images")) == 2
    assert "pip install datasets" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "accelerate", None)
    assert main(words()) == 2
    assert "pip install 'pitome-core[experiments]'" in capsys.readouterr().err


def test_packed_outcomes_come_back():
    generator = np.random.default_rng(0)
    for length in (0, 1, 7, 8, 9, 50_000):
        values = generator.integers(0, 2, length).astype(float)
        values[generator.random(length) < 0.01] = np.nan
        packed = json.loads(json.dumps(results.pack(values)))
        np.testing.assert_array_equal(results.unpack(packed), values)
    assert len(json.dumps(packed)) < 15_000
    with pytest.raises(ValueError, match="1 of 2 are not, the first at 1"):
        results.pack([0, 0.5])


def test_numbered_items_are_not_listed(tmp_path):
    record = results.Record.open(tmp_path / "r.json", {}, {"id": range(50_000)})
    record.add("whole", {}, {"correct": results.pack(np.ones(50_000))}, {})
    assert record.path.stat().st_size < 15_000
    again = results.Record.open(tmp_path / "r.json", {}, {"id": range(50_000)})
    assert again.items == record.items and again.outcome("whole", "correct").sum() == 50_000
    with pytest.raises(results.RecordError, match="50000 items there, 49999 now"):
        results.Record.open(tmp_path / "r.json", {}, {"id": range(49_999)})
