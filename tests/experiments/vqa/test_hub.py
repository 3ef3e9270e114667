"""The paper tier of `vqa`: a tiny LLaVA and tiny files in the official formats go through the very code."""

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

import pitome_core as pc
from pitome_core.experiments.__main__ import main
from pitome_core.experiments.models import llava_answers
from pitome_core.experiments.records import results
from pitome_core.experiments.vqa import benchmarks as vqa_benchmarks
from pitome_core.experiments.vqa import files as vqa_files
from pitome_core.experiments.vqa import grid as vqa_grid
from pitome_core.experiments.vqa import hub as vqa_hub
from pitome_core.experiments.vqa import loaded_llava
from pitome_core.experiments.vqa import metrics as vqa_metrics
from pitome_core.experiments.vqa.loaded_llava import load_model

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from official_files import gqa, textvqa, vqav2_annotations, vqav2_questions  # noqa: E402

from pitome_core.families.hf_llava import image_token_count  # noqa: E402

PICTURES = ("COCO_val2014_000000262144", "COCO_val2014_000000393225", "262144", "393225", "003a8ae2ef43b900",
            "003a8ae2ef43b901", "003a8ae2ef43b902")
ANSWERS = ("net", "yes", "no", "dakota", "red", "two")
SIDE, PATCH = 30, 5  # pixels: 36 patches
QUESTIONS = 7


@pytest.fixture(autouse=True)
def paper_tier(monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "paper")  # the command line sets it: put back afterwards
    monkeypatch.setenv("PITOME_DEVICE", "cpu")


def tokenizer():
    """Byte-level BPE as a `tokenizer.json`, with LLaVA's special tokens, and a token for each answer."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=["<unk>", "<s>", "</s>"], initial_alphabet=alphabet,
                                  show_progress=False)
    made.train_from_iterator([vqa_benchmarks.TEMPLATE.replace("<image>", "")], trainer)
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        extra_special_tokens=["<image>"],
    )
    fast.add_tokens([f" {word}" for word in ANSWERS])
    return fast


def published_names(folder: Path) -> None:
    """The weights under the names that the file on the hub has, which is older than this transformers."""
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): value for name, value in weights.items()}
    assert {"language_model.lm_head.weight", "language_model.model.norm.weight", "multi_modal_projector.linear_1.bias",
            "vision_tower.vision_model.pre_layrnorm.bias"} < set(renamed)
    save_file(renamed, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A LLaVA of random weights on the disk, in the layout of llava-1.5-7b-hf; it says words of `ANSWERS`."""
    folder, words = tmp_path_factory.mktemp("models") / "tiny-llava", tokenizer()
    language = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, intermediate_size=48,
        vocab_size=len(words), max_position_embeddings=256, bos_token_id=1, eos_token_id=2,
    )
    vision = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=2, image_size=SIDE,
        patch_size=PATCH, projection_dim=16,
    )
    config = transformers.LlavaConfig(
        vision_config=vision, text_config=language, image_token_id=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-2, vision_feature_select_strategy="default",
    )
    model = randomize(transformers.LlavaForConditionalGeneration(config)).eval()
    with torch.no_grad():
        model.model.multi_modal_projector.linear_2.weight *= 4  # pictures matter more than questions
        said = words.convert_tokens_to_ids([f" {word}" for word in ANSWERS]) + [2]
        silent = torch.ones(len(words), dtype=torch.bool)
        silent[said] = False
        model.lm_head.weight[silent] = 0
    model.save_pretrained(folder)
    published_names(folder)
    square = {"height": SIDE, "width": SIDE}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=square)
    transformers.LlavaProcessor(images, words, patch_size=PATCH, vision_feature_select_strategy="default",
                                num_additional_image_tokens=1).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Pictures of several sizes and modes, under the names of all three benchmarks."""
    root, draw = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i, name in enumerate(PICTURES):
        picture = Image.fromarray(draw.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((50 + 9 * i, 70 - 5 * i))
        picture.convert(("RGB", "L", "CMYK")[i % 3]).save(root / f"{name}.jpg")
    return root


def many_gqa() -> dict:
    """Seven questions of several lengths on two pictures, some of them with the answer that the tiny model gives."""
    one = list(gqa().values())[0]
    return {f"{n:08d}": one | {"imageId": ("262144", "393225")[n // 4], "answer": ("no no no", "yes")[n % 2],
                               "question": "Is the sky " + "very " * (5 * n % 7) + "dark?"}
            for n in range(QUESTIONS)}  # fmt: skip


OFFICIAL = {"vqav2": (vqav2_questions, vqav2_annotations), "gqa": (many_gqa,), "textvqa": (textvqa,)}


def files(folder: Path, benchmark: str, *contents) -> list[str]:
    """Official files on the disk, and the arguments that name them."""
    contents = contents or tuple(make() for make in OFFICIAL[benchmark])
    found = ["--data", benchmark]
    for option, content in zip(("questions", "annotations"), contents, strict=False):
        path = folder / f"{option}.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        found += [f"--{option}", str(path)]
    return found


def command(model, images, output: Path, *extra) -> list[str]:
    return ["vqa", "--profile", "paper", "--model", str(model), "--images", str(images), "--output", str(output),
            "--dtype", "float32", "--batch-size", "3", "--shard", "4", "--workers", "0", "--max-answer", "3",
            "--square", "crop", "--methods", "pitome", "tome", "--keep", "0.8", *map(str, extra)]  # fmt: skip


@pytest.fixture
def words(tiny, pictures, tmp_path):
    """words(*extra, data=..., **replaced) -> the command line; a later argument wins."""

    def make(*extra, data=None, model=tiny, images=pictures) -> list[str]:
        return command(model, images, tmp_path / "out", *(data or files(tmp_path, "gqa")), *extra)

    return make


def load(output: Path, name: str = "gqa-tiny-llava") -> results.Record:
    return results.Record.load(output / f"vqa-{name}.json")


def answers(record: results.Record, key: str) -> list[str | None]:
    path = vqa_hub.answers_folder(record.path) / f"{key.replace('/', '+')}.jsonl"
    return [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]


KEYS = ["whole", "pitome@0.8", "tome@0.8"]


@pytest.fixture(scope="module")
def gqa_run(tiny, pictures, tmp_path_factory):
    """The record of one run on GQA that nothing interrupted, beside its answers."""
    folder = tmp_path_factory.mktemp("gqa")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_PROFILE", "paper")
        patch.setenv("PITOME_DEVICE", "cpu")
        assert main(command(tiny, pictures, folder, *files(folder, "gqa"))) == 0
    return load(folder)


def outcomes(record: results.Record) -> dict:
    return {key: (answers(record, key), record.cells[key]["outcomes"]) for key in record.cells}


# -------------------------------------------------------------------------------------------------------------- answers
def generated(folder: Path, items, template: str = vqa_benchmarks.TEMPLATE) -> list[str]:
    """Question by question with the processor and the unpatched model's own `generate`."""
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.LlavaForConditionalGeneration.from_pretrained(folder).eval()
    found = []
    for item in items:
        picture = Image.open(item.image).convert("RGB")
        given = processor(images=picture, text=template.format(question=item.question), return_tensors="pt")
        out = model.generate(**given, max_new_tokens=3, do_sample=False)
        text = processor.decode(out[0, given["input_ids"].shape[1] :], skip_special_tokens=True)
        found.append(text.strip())
    return found


@pytest.mark.parametrize("benchmark", OFFICIAL)
def test_the_whole_model_answers_as_its_own_generate(benchmark, words, tiny, pictures, tmp_path):
    """From the official files of each benchmark to scores."""
    data = files(tmp_path, benchmark)
    assert main(words("--methods", "tome", data=data)) == 0
    record = load(tmp_path / "out", f"{benchmark}-tiny-llava")
    items = vqa_files.load(benchmark, *(data[3], pictures), *data[5:]).items
    expected = generated(tiny, items)
    assert answers(record, "whole") == expected and len(set(expected)) > 1
    scores = [vqa_metrics.metric(benchmark)(text, item.answers) for text, item in zip(expected, items, strict=True)]
    assert record.outcome("whole", "score").tolist() == scores
    assert record.items["id"] == [item.id for item in items]
    assert record.cells["whole"]["accuracy"] == pytest.approx(100 * np.mean(scores), abs=1e-3)
    assert record.cells["tome@0.8"]["scored"] == len(items)


def test_keep_1_answers_as_the_whole_model(tiny, pictures, tmp_path):
    items = vqa_files.load("gqa", files(tmp_path, "gqa")[3], pictures).items
    loaded = load_model(str(tiny), "float32", "crop", torch.device("cpu"))
    pixels = torch.stack([loaded.prepare(Image.open(item.image).convert("RGB")) for item in items])
    prompts = [vqa_benchmarks.benchmark("gqa").prompt(item.question) for item in items]
    with pc.patched(loaded.model, keep=1.0, restore=False):
        found = llava_answers.answer(loaded.model, loaded.tokenizer, pixels, prompts, max_new_tokens=3)
    assert found == generated(tiny, items)


def test_batches_change_no_answer(words, gqa_run, tmp_path):
    """Prompts of several lengths, padded on the left: one at a time gives what three or seven give."""
    assert len({len(row["question"]) for row in many_gqa().values()}) == QUESTIONS
    for size in (1, 7):
        assert main(words("--batch-size", size, "--shard", "100", "--output", tmp_path / str(size))) == 0
        assert outcomes(load(tmp_path / str(size))) == outcomes(gqa_run), size
    assert outcomes(gqa_run)["pitome@0.8"] != outcomes(gqa_run)["whole"]


def test_a_record_says_what_was_read_and_what_it_cost(gqa_run, tiny, capsys):
    whole, merged = gqa_run.cells["whole"], gqa_run.cells["pitome@0.8"]
    assert list(gqa_run.cells) == KEYS
    assert (whole["image_tokens"], merged["image_tokens"]) == (36, 20) and merged["tokens"] == [36, 29, 24, 20, 16]
    assert merged["order"] == "raster-centroid" and "order" not in whole
    loaded = load_model(str(tiny), "float32", "crop", torch.device("cpu"))
    model, row = loaded.model, loaded.tokenizer([vqa_benchmarks.TEMPLATE.format(question=one["question"])
                                                 for one in many_gqa().values()])["input_ids"]
    assert whole["prompt_tokens"] == pytest.approx(np.mean([len(ids) - 1 for ids in row]), abs=0.01)
    prefill = [vqa_grid.prefill_macs(model, 20 + len(ids) - 1) for ids in row]
    assert merged["gmacs_prefill"] == pytest.approx(np.mean(prefill) / 1e9, abs=1e-6)
    with pc.patched(model, "pitome", 0.8, restore=False):
        assert merged["gmacs_tower"] == pytest.approx(pc.flops(model).total / 1e9, abs=1e-6)
        assert image_token_count(model) == 20
    assert merged["gmacs"] == pytest.approx(merged["gmacs_tower"] + merged["gmacs_prefill"], abs=2e-6)
    assert merged["share"] == pytest.approx(merged["gmacs"] / whole["gmacs"], abs=1e-3)
    header = gqa_run.header
    assert header["data"] | {"list": ""} == {"name": "gqa", "file": "questions.json", "questions": 7, "pictures": 2,
                                             "left_out": 0, "list": ""}
    assert (header["model"], header["clusters"], header["square"]) == ("tiny-llava", ["picture"], "crop")
    assert gqa_run.items["picture"] == [0] * 4 + [1] * 3
    line = json.loads((vqa_hub.answers_folder(gqa_run.path) / "whole.jsonl").read_text().splitlines()[3])
    assert line == {"question_id": "00000003", "question": "Is the sky very dark?", "answer": line["answer"],
                    "score": gqa_run.outcome("whole", "score")[3]}


def test_prefill_is_that_of_the_cost_chapter():
    """With as many heads for keys as for queries; and every map of the language model is counted, on a meta device."""
    from pitome_core.experiments.cost.setups import PrefillShape

    shape = PrefillShape()
    with torch.device("meta"):
        text = transformers.LlamaConfig(vocab_size=shape.vocabulary)  # its defaults are those of 7B
        vision = transformers.CLIPVisionConfig(num_hidden_layers=1)
        model = transformers.LlavaForConditionalGeneration(transformers.LlavaConfig(
            vision_config=vision, text_config=text))
    assert vqa_grid.prefill_macs(model, 640) == shape.macs(640)


def test_the_grid_in_all_orders(words, tmp_path):
    """Every arm answers in every order, the transform alone as its tokens come."""
    arguments = words("--order", "raster-centroid", "raster-compact", "released", "--first", "4")
    del arguments[arguments.index("--methods") : arguments.index("--keep")]
    assert main(arguments) == 0
    record = load(tmp_path / "out", "gqa-first4-tiny-llava")
    expected = ["whole"] + [
        f"{arm}@0.8{tail}" for arm in vqa_hub.ARMS for tail in ("", "/raster-compact", "/released")
        if arm != "dct" or tail == "/raster-compact"
    ]
    assert list(record.cells) == expected and len(record) == 4
    assert record.cells["pitome-released-llava@0.8/released"]["options"] == {"preset": "released-llava"}
    assert len({tuple(record.cells[key]["tokens"]) for key in expected[1:]}) == 1


def test_the_controls_are_taken_by_name():
    """With the counterpart that has their metric and attention; the rows of Table 3 are the default."""
    chosen = ["pitome-released-clip", "tome-hidden", "tome-released-clip", "pitome-shuffled"]
    assert [cell.key for cell in vqa_hub.cells(chosen)] == [
        "whole", "pitome-released-clip@0.9", "tome-hidden@0.9", "tome-released-clip@0.9", "pitome-shuffled@0.9",
        "tome-hidden@0.9/off"]
    assert not {"tome-hidden", "pitome-shuffled"} & {cell.arm for cell in vqa_hub.cells()}


def test_bfloat16_is_the_language_model_alone(words, tiny, tmp_path):
    loaded = load_model(str(tiny), "bfloat16", "pad", torch.device("cpu"))
    kinds = {name.split(".")[1 if name.startswith("model") else 0]: parameter.dtype
             for name, parameter in loaded.model.named_parameters()}
    assert kinds == {"vision_tower": torch.float32, "multi_modal_projector": torch.float32,
                     "language_model": torch.bfloat16, "lm_head": torch.bfloat16}
    assert loaded.model.model.language_model.rotary_emb.inv_freq.dtype == torch.float32
    assert main(words("--dtype", "bfloat16", "--methods", "tome")) == 0
    assert load(tmp_path / "out", "gqa-tiny-llava-bfloat16").header["dtype"] == "bfloat16"


def test_pictures_are_padded_to_a_square(tiny):
    picture = Image.new("RGB", (7, 4), (200, 10, 10))
    square = np.asarray(loaded_llava.padded(picture, (1, 2, 3)))
    assert square.shape == (7, 7, 3)
    assert (square[1:5] == (200, 10, 10)).all() and (square[[0, 5, 6]] == (1, 2, 3)).all()
    pixels = load_model(str(tiny), "float32", "pad", torch.device("cpu")).prepare(picture.resize((70, 40)))
    assert pixels.shape == (3, SIDE, SIDE) and pixels[:, [0, -1]].abs().max() < 0.02  # the mean colour becomes zero


@pytest.mark.gpu
def test_cuda_agrees_with_the_processor(words, tmp_path, gqa_run, monkeypatch):
    monkeypatch.setenv("PITOME_DEVICE", "cuda")
    assert main(words("--workers", "2")) == 0
    record = load(tmp_path / "out")
    for key in KEYS:
        assert sum(a != b for a, b in zip(answers(record, key), answers(gqa_run, key), strict=True)) <= 1, key


# ------------------------------------------------------------------------------------------------------------- resuming
def test_a_run_goes_on_in_the_middle_of_a_cell(words, tmp_path, gqa_run, capsys):
    assert main(words("--estimate")) == 0
    assert "7 questions on 2 pictures, 3 cells, 0 recorded already; 6 of 6 shards" in capsys.readouterr().out
    assert main(words("--workers", 2)) == 0
    assert "5 of 6 shards to score" in capsys.readouterr().out
    assert outcomes(load(tmp_path / "out")) == outcomes(gqa_run)


def test_other_questions_are_not_added_to_a_record(words, tmp_path, capsys):
    assert main(words("--methods", "tome", "--estimate")) == 0
    assert main(words("--methods", "tome")) == 0
    other = many_gqa()
    other["00000002"]["answer"] = "another"
    assert main(words("--methods", "tome", data=files(tmp_path, "gqa", other))) == 2
    assert "is of another run" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------------------------------- data
def changed(make, way, value=None):
    """Contents of a file with the entry at the end of ``way`` set, or taken out."""
    content = make()
    inside = content
    for step in way[:-1]:
        inside = inside[step]
    if value is None:
        del inside[way[-1]]
    else:
        inside[way[-1]] = value
    return content


BAD = {
    "a picture is missing": ("gqa", [changed(many_gqa, ("00000002", "imageId"), "9")],
                             r"1 of 7 records of gqa .*questions.json, entry 00000002: no picture .*9.jpg"),
    "a question has no annotation": ("vqav2", [vqav2_questions(), changed(vqav2_annotations, ("annotations", 0))],
                                     r"questions.json, entry 3: no annotation of question 393225001 in annotations"),
    "an annotation has no question": ("vqav2", [changed(vqav2_questions, ("questions", 1)), vqav2_annotations()],
                                      r"annotations.json, entry \d: no question 262144001 in questions.json"),
    "nine answers": ("textvqa", [changed(textvqa, ("data", 2, "answers"), ["dakota"] * 9)],
                     r"questions.json, entry 2: 9 answers, not 10"),
    "no text": ("gqa", [changed(many_gqa, ("00000004", "question"))], r"entry 00000004: no question"),
}


@pytest.mark.parametrize("case", list(BAD))
def test_malformed_records_stop_the_run_or_are_named_and_counted(case, words, tmp_path, capsys):
    benchmark, contents, message = BAD[case]
    data = files(tmp_path, benchmark, *contents)
    assert main(words(data=data)) == 2
    said = capsys.readouterr()
    assert re.search(f"^error: .*{message}.*--skip-malformed", said.err, re.DOTALL) and not said.out, said.err
    assert main(words("--skip-malformed", "--methods", "tome", data=data)) == 1
    said = capsys.readouterr().err
    name = message.split("of gqa .*")[-1]
    assert re.search(f"1 records left out: .*{name}", said)
    record = load(tmp_path / "out", f"{benchmark}-tiny-llava")
    assert record.header["data"]["left_out"] == 1 and record.cells["whole"]["scored"] == len(record)
    assert re.search(name, (vqa_hub.answers_folder(record.path) / "left_out.txt").read_text())


@pytest.mark.parametrize(
    "benchmark, contents, message",
    [
        ("gqa", ['{"1": {"question": "?",\n{'], "questions.json is no JSON .*line 2"),
        ("gqa", [[1, 2]], "questions.json holds a list where the official file has a dict"),
        ("textvqa", [gqa()], "questions.json has no list 'data'"),
        ("textvqa", [changed(textvqa, ("data",), [])], "has no question"),
        ("vqav2", [vqav2_questions()], "vqav2 has its answers in a second file"),
        ("gqa", [changed(many_gqa, ("00000003", "question"), "an <image>")], "questions.json, question 00000003 holds"),
    ],
)
def test_other_files_are_refused(benchmark, contents, message, words, tmp_path, capsys):
    for extra in ([], ["--skip-malformed"]):
        assert main(words(*extra, data=files(tmp_path, benchmark, *contents))) == 2
        assert re.search(f"^error: .*{message}", (said := capsys.readouterr().err), re.DOTALL), said


def test_an_unreadable_picture_stops_the_run_or_is_named_and_counted(words, pictures, tmp_path, gqa_run, capsys):
    """It shows when its turn comes; what was answered before stays, and mended the run goes on."""
    copy = shutil.copytree(pictures, tmp_path / "pictures")
    (copy / "393225.jpg").write_bytes(b"no picture")
    assert main(words(images=copy)) == 2
    said = capsys.readouterr().err
    assert "error: questions.json, question 00000004: cannot read 393225.jpg (UnidentifiedImageError" in said
    assert main(words("--skip-malformed", "--output", tmp_path / "skipped", images=copy)) == 1
    said = capsys.readouterr().err
    assert "3 of 7 questions on 2 pictures could not be read" in said and "left out: questions.json, question 0" in said
    record = load(tmp_path / "skipped")
    for key in KEYS:
        assert record.cells[key]["scored"] == 4 and len(record.cells[key]["unreadable"]) == 3
        assert answers(record, key) == answers(gqa_run, key)[:4] + [None] * 3
        assert np.isnan(record.outcome(key, "score")).tolist() == [False] * 4 + [True] * 3
    shutil.copyfile(pictures / "393225.jpg", copy / "393225.jpg")
    assert main(words(images=copy)) == 0
    assert "5 of 6 shards to score" in capsys.readouterr().out
    assert outcomes(load(tmp_path / "out")) == outcomes(gqa_run)


PLUGIN = '''
from pitome_core.experiments.vqa import benchmarks as vqa_benchmarks, files as vqa_files, metrics as vqa_metrics

def read(questions, images, annotations, skip):
    """Lines of name, question and answer, with tabs between."""
    items, problems = [], []
    for number, line in enumerate(questions.read_text().splitlines(), 1):
        parts = line.split("\t")
        if len(parts) == 3:
            items.append(vqa_files.Item(str(number), images / parts[0], parts[1], (parts[2],)))
        else:
            problems.append(f"{questions.name} line {number}: {len(parts)} columns, not 3")
    if problems and not skip:
        raise vqa_files.MalformedError("; ".join(problems), tuple(problems))
    return vqa_files.Items("lines", tuple(items), tuple(problems))

vqa_metrics.register_metric("lines", str.upper, vqa_metrics.exact_match)
vqa_benchmarks.register_benchmark(vqa_benchmarks.Benchmark("lines", read, "lines", "<image>Q: {question} A:"))
'''


@pytest.fixture
def fresh_registries(monkeypatch):
    monkeypatch.setattr(vqa_benchmarks, "_BENCHMARKS", dict(vqa_benchmarks._BENCHMARKS))
    monkeypatch.setattr(vqa_metrics, "_METRICS", dict(vqa_metrics._METRICS))


def test_another_benchmark_plugs_in(words, tiny, pictures, tmp_path, monkeypatch, fresh_registries, capsys):
    """A module with a reader, a metric and a prompt of its own, and nothing else."""
    (tmp_path / "lines_benchmark.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(tmp_path)
    lines = tmp_path / "lines.tsv"
    lines.write_text("262144.jpg\twhat?\tNO\n393225.jpg\n393225.jpg\tand that?\tno no no\n")
    data = ["--data", "lines", "--plugin", "lines_benchmark", "--questions", str(lines)]
    assert main(words(data=data)) == 2
    assert "error: lines.tsv line 2: 1 columns, not 3" in capsys.readouterr().err
    assert main(words("--skip-malformed", data=data)) == 1
    record = load(tmp_path / "out", "lines-tiny-llava")
    lines = vqa_benchmarks.benchmark("lines")
    items = [vqa_files.Item("1", pictures / "262144.jpg", "what?", ("NO",)),
             vqa_files.Item("3", pictures / "393225.jpg", "and that?", ("no no no",))]
    expected = generated(tiny, items, lines.template)
    assert answers(record, "whole") == expected and record.items["id"] == ["1", "3"]
    scores = [float(text.upper() == item.answers[0].upper()) for text, item in zip(expected, items, strict=True)]
    assert record.outcome("whole", "score").tolist() == scores and record.header["template"] == lines.template


def test_what_does_not_plug_in(words, fresh_registries, capsys):
    make, read = vqa_benchmarks.Benchmark, vqa_benchmarks.benchmark("gqa").read
    for wrong, error, message in (
        (make("gqa", read, "gqa"), ValueError, "there is a benchmark 'gqa' already"),
        (make("new", read, "none"), KeyError, "no metric 'none'"),
        (make("new", read, "gqa", "<image>?"), ValueError, "needs {question} and <image>, once"),
        (make("new", read, "gqa", "<image> {question} <image>"), ValueError, "needs {question} and <image>, once"),
    ):
        with pytest.raises(error, match=re.escape(message)):
            vqa_benchmarks.register_benchmark(wrong)
    for data, message in ((["--data", "mme"], "mme: no benchmark 'mme'; there are vqav2, gqa, textvqa, and --plugin"),
                          (["--data", "gqa", "--plugin", "no_such_module"], "No module named 'no_such_module'")):
        assert main(words(data=data)) == 2
        assert message in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------- models and refusals
@pytest.mark.parametrize(
    "replaced, extra, message",
    [
        (dict(model="nowhere/at/all"), [], "nowhere/at/all could not be loaded .*pass a folder in the format of"),
        (dict(images="nowhere"), [], "no folder nowhere"),
        (dict(data=["--data", "gqa"]), [], "no data: pass --questions FILE and --images FOLDER"),
        (dict(data=["--data", "gqa", "--questions", "nowhere.json"]), [], "no file nowhere.json"),
        ({}, ["--keep", "1.5"], "keep 1.5 must lie between 0 and 1"),
        ({}, ["--methods", "lower-resolution"], "no method 'lower-resolution' in .*there are pitome, energy-sorted"),
        ({}, ["--max-answer", "0"], "--max-answer 0 is below 1"),
        ({}, ["--first", "3", "--split", "test"], "--first is for trials"),
    ],
)
def test_refusals_name_the_remedy(words, tmp_path, monkeypatch, replaced, extra, message, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    assert main(words(*extra, **replaced)) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert re.search(f"^error: .*{message}", captured.err, re.DOTALL), captured.err


def mended(folder: Path, name: str, change) -> None:
    found = json.loads((folder / name).read_text())
    change(found)
    (folder / name).write_text(json.dumps(found))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda found: found.update(model_type="llava_next"), "is a llava_next; merged here is llava, such as"),
        (lambda found: found.update(image_token_index=7, image_token_id=7), "<image> is token .* and 7 of the model"),
        (lambda found: found.update(vision_feature_layer=[-2, -1]), "cannot be merged|could not be loaded"),
    ],
)
def test_models_that_do_not_fit_are_refused(change, message, words, tiny, tmp_path, capsys):
    folder = shutil.copytree(tiny, tmp_path / "other")
    mended(folder, "config.json", change)
    assert main(words(model=folder)) == 2
    assert re.search(f"^error: .*({message})", (said := capsys.readouterr().err), re.DOTALL | re.MULTILINE), said


def test_weights_that_are_missing_are_not_made_up(words, tiny, tmp_path, capsys):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny, tmp_path / "other")
    weights = load_file(folder / "model.safetensors")
    del weights["multi_modal_projector.linear_1.bias"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert main(words(model=folder)) == 2
    assert "has no weights for model.multi_modal_projector.linear_1.bias and 0 others" in capsys.readouterr().err
