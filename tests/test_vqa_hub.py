"""The paper tier of `vqa`: a tiny LLaVA and tiny files in the official formats go through the very code."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import pitome_core as pc
from conftest import randomize
from pitome_core.experiments import grid, results, sweep, vqa_benchmarks, vqa_files, vqa_hub, vqa_metrics

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
from test_vqa_files import gqa, textvqa, vqav2_annotations, vqav2_questions  # noqa: E402

from pitome_core.families.hf_llava import image_token_count  # noqa: E402

PICTURES = ("COCO_val2014_000000262144", "COCO_val2014_000000393225", "262144", "393225", "003a8ae2ef43b900",
            "003a8ae2ef43b901", "003a8ae2ef43b902")
ANSWERS = ("net", "yes", "no", "dakota", "red", "two")
SIDE, PATCH = 30, 5  # pixels: 36 patches
QUESTIONS = 7


@pytest.fixture(autouse=True)
def paper_tier(monkeypatch):
    monkeypatch.setenv("PITOME_PROFILE", "paper")
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
    """Seven questions of several lengths on two pictures."""
    one = list(gqa().values())[0]
    return {f"{n:08d}": one | {"imageId": ("262144", "393225")[n // 4], "answer": ANSWERS[n % len(ANSWERS)],
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


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser()
    sweep.add_grid_arguments(parser)
    vqa_hub.configure(parser)
    return vqa_hub.run(parser.parse_args(arguments))


@pytest.fixture
def words(tiny, pictures, tmp_path):
    """words(*extra, data=..., **replaced) -> the command line; a later argument wins."""

    def make(*extra, data=None, model=tiny, images=pictures) -> list[str]:
        return ["--model", str(model), "--images", str(images), "--output", str(tmp_path / "out"), "--dtype", "float32",
                "--batch-size", "3", "--shard", "4", "--workers", "0", "--max-answer", "3", "--methods", "pitome",
                "tome", "--keep", "0.8", *(data or files(tmp_path, "gqa")), *map(str, extra)]

    return make


def load(output: Path, name: str = "gqa-tiny-llava") -> results.Record:
    return results.Record.load(output / f"vqa-{name}.json")


def answers(record: results.Record, key: str) -> list[str | None]:
    path = vqa_hub.answers_folder(record) / f"{key.replace('/', '+')}.jsonl"
    return [json.loads(line)["answer"] for line in path.read_text(encoding="utf-8").splitlines()]


KEYS = ["whole", "pitome@0.8", "tome@0.8"]


@pytest.fixture(scope="module")
def gqa_run(tiny, pictures, tmp_path_factory):
    """The record of one run on GQA that nothing interrupted, beside its answers."""
    folder = tmp_path_factory.mktemp("gqa")
    arguments = ["--model", str(tiny), "--images", str(pictures), "--output", str(folder), "--dtype", "float32",
                 "--batch-size", "3", "--shard", "4", "--workers", "0", "--max-answer", "3", "--methods", "pitome",
                 "tome", "--keep", "0.8", *files(folder, "gqa")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PITOME_PROFILE", "paper")
        patch.setenv("PITOME_DEVICE", "cpu")
        assert main(arguments) == 0
    return load(folder)


def test_run(gqa_run):
    for key in KEYS:
        print(key, answers(gqa_run, key), gqa_run.outcome(key, "score"), {k: v for k, v in gqa_run.cells[key].items() if k != "outcomes"})
    assert 0
