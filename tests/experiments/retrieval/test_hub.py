"""The paper tier of `retrieval`: tiny open_clip models and tiny files in the real formats go through the very code."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import randomize
from torch import nn

import pitome_core as pc
from pitome_core.experiments.__main__ import main
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import ARMS, Cell
from pitome_core.experiments.retrieval import captions, recall
from pitome_core.experiments.retrieval import grid as retrieval_grid
from pitome_core.experiments.retrieval import hub as retrieval_hub
from pitome_core.experiments.runs import grid
from pitome_core.experiments.runs.shards import Refused

open_clip = pytest.importorskip("open_clip")
pytest.importorskip("accelerate")
IMAGES = 7
WORDS = "a red cat on the green table under two blue dogs near some old house with trees".split()
VISION = dict(image_size=32, patch_size=8, width=48, head_width=16, layers=3)
KEYS = ["whole", "pitome@0.9", "pitome@0.9/off", "tome@0.9", "tome@0.9/off"]


@pytest.fixture(autouse=True)
def paper_tier(monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "paper")  # the command line sets it: put back afterwards
    monkeypatch.setenv("PITOME_DEVICE", "cpu")


def captions_of(image: int, count: int = 5) -> list[str]:
    draw = np.random.default_rng(image)
    return [" ".join(draw.choice(WORDS, size=3 + n)) + "." for n in range(count)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Seven pictures of several sizes and modes."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(IMAGES):
        picture = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((50 + 9 * i, 70 - 5 * i))
        picture = picture.convert(("RGB", "L", "CMYK")[i % 3])
        picture.save(root / f"{i}.jpg")
    return root


def karpathy(kind: str = "flickr30k", change=lambda entries: None) -> dict:
    """The format of Karpathy's files: all splits in one list, captions as sentences with tokens."""
    entries = [
        {"filename": f"{i}.jpg", "imgid": i, "split": "test" if i < IMAGES else "train", "sentids": [],
         "sentences": [{"raw": text, "tokens": text.split(), "imgid": i, "sentid": n}
                       for n, text in enumerate(captions_of(i, 7 if kind == "coco" and i == 2 else 5))]}
        for i in (8, 0, 1, 2, 3, 9, 4, 5, 6)
    ]
    if kind == "coco":
        for entry in entries:
            entry |= {"filepath": "val2014", "cocoid": entry["imgid"]}
    change(entries)
    return {"dataset": kind, "images": entries}


def coco(change=lambda found: None) -> dict:
    """COCO's own format: captions apart, in an order of their own."""
    annotations = [{"image_id": 100 + i, "id": 10 * i + n, "caption": text}
                   for i in range(IMAGES) for n, text in enumerate(captions_of(i, 6 if i == 2 else 5))]
    found = {"info": {}, "annotations": annotations[::-1],
             "images": [{"id": 100 + i, "file_name": f"{i}.jpg"} for i in range(IMAGES)]}
    change(found)
    return found


@pytest.fixture
def write(tmp_path):
    def made(found, name: str = "captions.json") -> Path:
        (tmp_path / name).write_text(found if isinstance(found, str) else json.dumps(found))
        return tmp_path / name

    return made


def save(folder: Path, text: dict) -> Path:
    """A model with random weights in open_clip's local format."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": {}}))
    from safetensors.torch import save_file

    kind = open_clip.CustomTextCLIP if "hf_model_name" in text else open_clip.CLIP
    given = {**text, "hf_model_pretrained": False} if "hf_model_name" in text else text
    model = randomize(kind(24, VISION, given))
    save_file({name: value.contiguous() for name, value in model.state_dict().items()},
              folder / "open_clip_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A CLIP with open_clip's own towers and tokenizer."""
    return save(tmp_path_factory.mktemp("models") / "tiny", dict(context_length=12, width=32, heads=2, layers=2))


@pytest.fixture(scope="module")
def with_bert(tmp_path_factory):
    """One whose text tower is a BERT."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", *WORDS]))
    transformers.BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                            vocab_size=50, max_position_embeddings=20).save_pretrained(folder)
    return save(folder, dict(hf_model_name=str(folder), hf_tokenizer_name=str(folder), hf_pooler_type="mean_pooler",
                             hf_proj_type="mlp", context_length=16))


@pytest.fixture
def words(pictures, tiny, write, tmp_path):
    """words(*extra, **replaced) -> the command line; a later argument wins."""

    def make(*extra, model=f"local-dir:{tiny}", annotations=None, images=pictures) -> list[str]:
        annotations = annotations or write(karpathy())
        return ["retrieval", "--profile", "paper", "--model", str(model), "--annotations", str(annotations),
                "--images", str(images), "--output", str(tmp_path / "out"), "--batch-size", "2", "--shard", "3",
                "--workers", "0", "--methods", "pitome", "tome", "--keep", "0.9", *map(str, extra)]

    return make


def load(output: Path, name: str = "flickr30k-tiny") -> results.Record:
    return results.Record.load(output / f"retrieval-{name}.json")


def outcomes(record: results.Record) -> tuple:
    return record.items, {key: cell["outcomes"] for key, cell in record.cells.items()}


def plain_loop(folder: Path, pictures: Path, cell: Cell) -> list[int]:
    """Ranks from one picture and one caption at a time, with open_clip's functions and python's sort."""
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    model.eval()
    tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    if cell.arm != grid.WHOLE:
        pc.apply(model, ARMS[cell.arm].method, cell.keep, towers=cell.towers,
                 **{"proportional": cell.proportional, **cell.options})
    with torch.inference_mode():
        files = [pictures / f"{i}.jpg" for i in range(IMAGES)]
        x = [model.encode_image(preprocess(Image.open(file).convert("RGB"))[None], normalize=True)[0] for file in files]
        texts = [text for i in range(IMAGES) for text in captions_of(i)]
        y = [model.encode_text(tokenizer([text]), normalize=True)[0] for text in texts]
    scores = [[float(a @ b) for b in y] for a in x]
    found = []
    for i in range(IMAGES):
        order = sorted(range(len(y)), key=lambda t: -scores[i][t])
        found.append(1 + next(place for place, t in enumerate(order) if t // 5 == i))
    for t in range(len(y)):
        order = sorted(range(IMAGES), key=lambda i: -scores[i][t])
        found.append(1 + order.index(t // 5))
    return found


@pytest.fixture(scope="module")
def whole_run(pictures, tiny, tmp_path_factory):
    """The record of one process that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "captions.json").write_text(json.dumps(karpathy()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_DEVICE", "cpu")
        patch.setenv("PITOME_PROFILE", "paper")
        assert main(["retrieval", "--profile", "paper", "--model", f"local-dir:{tiny}", "--annotations",
                     str(folder / "captions.json"), "--images", str(pictures), "--output", str(folder / "out"),
                     "--batch-size", "2", "--shard", "3", "--workers", "0", "--methods", "pitome", "tome", "--keep",
                     "0.9"]) == 0
    assert list((folder / "out").iterdir()) == [folder / "out" / "retrieval-flickr30k-tiny.json"]  # no part is left
    return load(folder / "out")


# -------------------------------------------------------------------------------------------------------- what it does
@pytest.mark.parametrize("key", ["whole", "pitome@0.9", "tome@0.9/off"])
def test_ranks_are_those_of_a_plain_loop(whole_run, tiny, pictures, key):
    """Query by query."""
    cell = next(c for c in retrieval_grid.cells(["pitome", "tome"], [0.9]) if c.key == key)
    found = whole_run.outcome(key, "rank")
    assert found.tolist() == plain_loop(tiny, pictures, cell)
    assert len(set(found.tolist())) > 3, "the comparison could fail"
    assert whole_run.cells[key]["recall"]["rsum"] == pytest.approx(recall.rsum(whole_run, key)[0], abs=1e-3)


def test_the_record_says_what_was_run(whole_run, tiny, pictures):
    """Cells, clusters, data, costs of both towers; no folder of this machine."""
    assert list(whole_run.cells) == KEYS and whole_run.header["clusters"] == ["image"]
    assert whole_run.header["data"] | {"list": ""} == {
        "name": "flickr30k", "images": IMAGES, "captions": 35, "left_out": 0, "list": ""}
    assert whole_run.items["query"] == ["image"] * 7 + ["text"] * 35
    assert whole_run.items["image"] == [*range(7), *(i for i in range(7) for _ in range(5))]
    text = whole_run.path.read_text()
    assert not any(str(path.parent) in text for path in (tiny, pictures, whole_run.path))
    model = open_clip.create_model(f"local-dir:{tiny}")
    maps = sum(part.weight.numel() for block in model.transformer.resblocks for part in block.mlp
               if isinstance(part, nn.Linear)) + sum(4 * 32**2 for _ in model.transformer.resblocks)
    whole = whole_run.cells["whole"]
    assert whole["gmacs_text"] == pytest.approx((12 * maps + 2 * 2 * 12**2 * 32 + 32 * 24) / 1e9, abs=1e-6)
    assert whole["gmacs_image"] == pytest.approx(pc.flops(model).total / 1e9, abs=1e-6) and whole["share"] == 1
    assert whole_run.cells["tome@0.9"]["gmacs_text"] == whole["gmacs_text"] and whole["tokens"] == [16] * 4
    assert whole_run.cells["tome@0.9"]["share"] < 1


def test_a_bert_as_text_tower_merges_too(words, with_bert, pictures, tmp_path, capsys):
    """In the text tower and in both, and each cell is the plain loop's."""
    assert main(words("--keep", "0.6", model=f"local-dir:{with_bert}")) == 0
    record = load(tmp_path / "out", "flickr30k-bert")
    assert [key for key in record.cells if "/text" in key or "/both" in key] == [
        "pitome@0.6/text", "tome@0.6/text", "pitome@0.6/both", "tome@0.6/both"]
    for key, towers in (("tome@0.6/text", "text"), ("pitome@0.6/both", "both")):
        cell = Cell(key.partition("@")[0], 0.6, towers=towers)
        assert record.outcome(key, "rank").tolist() == plain_loop(with_bert, pictures, cell)
        assert record.cells[key]["gmacs_text"] < record.cells["whole"]["gmacs_text"]
    assert "rsum minus ToMe's" in capsys.readouterr().out


def test_the_grid_of_the_protocol_runs(words, tmp_path):
    """Every arm of the image tower, random ones with their seeds, and counterparts; nothing that needs a timm model."""
    arguments = words("--shard", "100", "--batch-size", "35")
    del arguments[arguments.index("--methods") : arguments.index("--keep")]
    assert main([*arguments, "--keep", "0.8"]) == 0
    assert list(load(tmp_path / "out").cells) == [
        *(cell.key for cell in grid.cells(None, [0.8])), "pitome-released-clip@0.8", "tome-released-clip@0.8",
        "tome@0.8/off", "tome-hidden@0.8/off"]


def test_what_was_released_for_clip_runs(words, tiny, pictures, tmp_path, capsys):
    """PiToMe, ToMe as it is beside it there, and the counterpart; all are the plain loop's, and differ."""
    assert main(words("--keep", "0.7", "--methods", "pitome-released-clip", "tome-released-clip", "tome-hidden")) == 0
    record = load(tmp_path / "out")
    cells = [Cell("pitome-released-clip", 0.7), Cell("tome-released-clip", 0.7), Cell("tome-hidden", 0.7, False)]
    assert [key for key in record.cells if key in {cell.key for cell in cells}] == [cell.key for cell in cells]
    found = {cell.key: record.outcome(cell.key, "rank").tolist() for cell in cells}
    assert found == {cell.key: plain_loop(tiny, pictures, cell) for cell in cells}
    assert len(set(map(tuple, found.values()))) == 3, "the comparison could fail"
    assert record.rival_of("pitome-released-clip@0.7") == "tome-hidden@0.7/off"
    assert record.about("tome-released-clip@0.7")["tokens"] == record.about("tome-hidden@0.7/off")["tokens"]


def test_bfloat16_is_autocast(words, tmp_path):
    assert main(words("--dtype", "bfloat16", "--methods", "tome")) == 0
    record = load(tmp_path / "out", "flickr30k-tiny-bfloat16")
    assert record.header["dtype"] == "bfloat16" and list(record.cells) == ["whole", "tome@0.9", "tome@0.9/off"]


@pytest.mark.gpu
def test_cuda_agrees_with_the_processor(words, tmp_path, whole_run, monkeypatch):
    monkeypatch.setenv("PITOME_DEVICE", "cuda")
    assert main(words("--workers", "2")) == 0
    record = load(tmp_path / "out")
    for key in KEYS:
        flips, _ = results.disagreement(whole_run.outcome(key, "rank"), record.outcome(key, "rank"), 0)
        assert flips <= 3, key


# ------------------------------------------------------------------------------------------------------------ resuming
def test_a_run_goes_on_in_the_middle_of_a_cell(words, tmp_path, whole_run, capsys):
    """Five kinds of images in three shards each, and the captions, which all cells share, in twelve."""
    assert main(words("--estimate")) == 0
    assert "7 images, 35 captions, 5 cells, 0 recorded already; 27 of 27 shards" in capsys.readouterr().out
    assert main(words("--workers", 2)) == 0
    assert "26 of 27 shards" in capsys.readouterr().out
    assert outcomes(load(tmp_path / "out")) == outcomes(whole_run)


def test_another_gallery_is_not_added_to_a_record(words, write, tmp_path, capsys):
    assert main(words("--methods", "tome")) == 0
    other = write(karpathy(change=lambda entries: entries[1]["sentences"][0].update(raw="another caption")))
    assert main(words("--methods", "tome", annotations=other)) == 2
    assert "is of another run" in capsys.readouterr().err


# ---------------------------------------------------------------------------------------------------------------- data
def test_formats_agree(write, pictures, tmp_path):
    """Karpathy's files of both data sets and COCO's own give the same pictures and captions."""
    flickr = captions.load_captions("flickr30k", write(karpathy()), pictures)
    shutil.copytree(pictures, tmp_path / "coco" / "val2014")
    assert [file.name for file in flickr.files] == [f"{i}.jpg" for i in range(IMAGES)]
    assert flickr.texts == tuple(text for i in range(IMAGES) for text in captions_of(i))
    assert flickr.answers[11] == [2] and len(flickr.answers) == 35 and flickr.left_out == 0
    others = [
        captions.load_captions("coco", write(karpathy("coco")), tmp_path / "coco"),
        captions.load_captions("coco", write(coco()), pictures),
    ]
    assert [other.left_out for other in others] == [2, 1]
    for other in others:
        assert other.texts[:10] == flickr.texts[:10] and len(other.texts) == 35
        assert [file.name for file in other.files] == [file.name for file in flickr.files]
    (tmp_path / "only.txt").write_text("4.jpg\n\n1.jpg\n")
    some = captions.load_captions("coco", write(coco()), pictures, tmp_path / "only.txt")
    assert [file.name for file in some.files] == ["1.jpg", "4.jpg"] and some.texts[:5] == tuple(captions_of(1))
    assert some.digest != others[1].digest


def entry(i: int, **changes):
    return lambda entries: entries[i].update(changes)


BAD = {
    "a missing picture": ("flickr30k", karpathy(change=entry(2, filename="gone.jpg")),
                          r"captions.json: images\[2\] \(gone.jpg\): no such picture in .*fetch it"),
    "four captions": ("flickr30k", karpathy(change=lambda e: e[3]["sentences"].pop()),
                      r"images\[3\] \(2.jpg\) has 4 captions, flickr30k has 5 of every image"),
    "six captions": ("flickr30k", karpathy(change=lambda e: e[1]["sentences"].append({"raw": "one more"})),
                     r"images\[1\] \(0.jpg\) has 6 captions"),
    "an empty caption": ("flickr30k", karpathy(change=lambda e: e[4]["sentences"][2].update(raw="  ")),
                         r"images\[4\] \(3.jpg\): sentences\[2\] is an empty caption"),
    "no caption at all": ("coco", coco(lambda f: f["annotations"][3].update(caption=None)),
                          r"images\[6\] \(6.jpg\): annotations\[3\] is an empty caption"),
    "too few, COCO": ("coco", coco(lambda f: f["annotations"].pop(0)),
                      r"images\[6\] \(6.jpg\) has 4 captions, coco has 5 of every image at least"),
    "an unknown image": ("coco", coco(lambda f: f["annotations"][5].update(image_id=7)),
                         r"annotations\[5\] is of image 7, which images does not list"),
    "one picture twice": ("flickr30k", karpathy(change=entry(3, filename="1.jpg")),
                          r"images\[3\] \(1.jpg\) has the picture of images\[2\]"),
    "the other data set": ("coco", karpathy(), "is of flickr30k: pass --data flickr30k"),
    "no test split": ("flickr30k", karpathy(change=lambda e: [one.update(split="train") for one in e]),
                      "no image of the test split"),
    "no JSON": ("flickr30k", '{"images": [\n{]}', "captions.json line 2: no JSON"),
    "a list": ("flickr30k", "[1, 2]", "no list of images: it is neither"),
    "other keys": ("flickr30k", {"images": [{"name": "0.jpg"}]}, "neither Karpathy's format nor COCO's .KeyError"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_bad_data_are_refused_with_file_and_entry(case, words, write, capsys):
    kind, found, message = BAD[case]
    assert main(words("--data", kind, annotations=write(found))) == 2
    assert re.search(f"^error: .*{message}", (said := capsys.readouterr().err), re.DOTALL), said


def test_an_unreadable_picture_stops_the_run(words, pictures, tmp_path, capsys):
    """It is named; what was encoded before stays, and mended the run goes on."""
    copy = tmp_path / "pictures"
    shutil.copytree(pictures, copy)
    (copy / "5.jpg").write_bytes(b"no picture")
    assert main(words(images=copy)) == 2
    assert "cannot read 5.jpg (UnidentifiedImageError" in capsys.readouterr().err
    shutil.copyfile(pictures / "5.jpg", copy / "5.jpg")
    assert main(words(images=copy)) == 0
    assert "26 of 27 shards" in capsys.readouterr().out


def test_all_of_coco_is_not_the_test_split(words, write, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(captions, "LARGEST", 3)
    assert main(words("--data", "coco", annotations=write(coco()))) == 2
    assert "has 7 images: pass --only FILE with the names of the 3" in capsys.readouterr().err
    (tmp_path / "only.txt").write_text("1.jpg\n9.jpg\n")
    assert main(words("--data", "coco", "--only", tmp_path / "only.txt", annotations=write(coco()))) == 2
    assert "only.txt line 2: '9.jpg' is no file_name in captions.json" in capsys.readouterr().err
    assert main(words("--only", tmp_path / "only.txt")) == 2
    assert "has a test split of its own" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------------- models
def test_the_models_of_the_paper_exist(monkeypatch):
    """With weights of OpenAI, which are loaded with the GELU they were trained with."""
    given = {}

    def create(name, **how):
        given[name] = how
        raise RuntimeError("no network")

    monkeypatch.setattr(open_clip, "create_model_and_transforms", create)
    for name in retrieval_hub.MODELS:
        with pytest.raises(Refused, match=f"{name} could not be loaded .RuntimeError: no network"):
            retrieval_hub.load_model(name, "openai", torch.device("cpu"))
        assert given[name]["force_quick_gelu"] is True
    with pytest.raises(Refused):
        retrieval_hub.load_model("ViT-B-32", "laion2b_s34b_b79k", torch.device("cpu"))
    assert given["ViT-B-32"] == {
        "pretrained": "laion2b_s34b_b79k", "force_quick_gelu": False, "require_pretrained": True}


@pytest.mark.parametrize(
    "replaced, extra, message",
    [
        (dict(model="ViT-B-33"), [], "no model 'ViT-B-33' in open_clip.*for example ViT-B-32"),
        (dict(model="ViT-B-32"), ["--pretrained", "nope"], "no weights 'nope' for ViT-B-32; it has openai"),
        (dict(model="local-dir:nowhere"), [], "no nowhere/open_clip_config.json"),
        (dict(annotations="nowhere.json"), [], "no file nowhere.json"),
        (dict(images="nowhere"), [], "no folder nowhere"),
        ({}, ["--keep", "1.5"], "keep 1.5 must lie between 0 and 1"),
        ({}, ["--only", "nowhere.txt", "--data", "coco"], "no file nowhere.txt"),
    ],
)
def test_refusals_name_the_remedy(words, write, tmp_path, monkeypatch, replaced, extra, message, capsys):
    monkeypatch.chdir(tmp_path)
    if "coco" in extra:
        replaced = {"annotations": write(coco())}
    assert main(words(*extra, **replaced)) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert re.search(f"^error: .*{message}", captured.err, re.DOTALL), captured.err


def test_a_tower_that_cannot_merge_is_refused(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(VISION, "layers", [1, 1, 1, 1])  # a ResNet
    monkeypatch.setitem(VISION, "width", 8)
    folder = save(tmp_path / "resnet", dict(context_length=12, width=32, heads=2, layers=1))
    assert main(words(model=f"local-dir:{folder}")) == 2
    assert "cannot be merged: visual is a ModifiedResNet" in capsys.readouterr().err
