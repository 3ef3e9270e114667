"""Tiny official files of VQAv2, GQA, TextVQA and SST-2, in their real formats."""

from __future__ import annotations

from pathlib import Path

IMAGES = (262144, 393225)
TEXTS = ["the film is very good .", "a long and dull film , not good", "witty", "it is bad but short . " * 6]
LABELS = [1, 0, 1, 0]


def vqav2_questions() -> dict:
    return {
        "info": {"description": "tiny", "version": "2.0"}, "task_type": "Open-Ended", "data_type": "mscoco",
        "data_subtype": "val2014", "license": {},
        "questions": [{"image_id": image, "question": f"What is in {image}?", "question_id": 1000 * image + n}
                      for image in IMAGES for n in range(2)],
    }  # fmt: skip


def vqav2_annotations() -> dict:
    rows = [
        {"question_type": "what is", "answer_type": "other", "multiple_choice_answer": "net", "image_id": image,
         "question_id": 1000 * image + n,
         "answers": [{"answer": "net" if i < 7 else "", "answer_confidence": "maybe", "answer_id": i + 1}
                     for i in range(10)]}
        for image in IMAGES for n in range(2)
    ]  # fmt: skip
    return {"info": {}, "data_subtype": "val2014", "annotations": rows[::-1]}  # in an order of its own


def gqa() -> dict:
    return {f"0{n}930152": {"semantic": [], "isBalanced": True, "question": "Is the sky dark?", "imageId": str(image),
                            "answer": "yes", "fullAnswer": "Yes, the sky is dark.", "types": {}}
            for n, image in enumerate(IMAGES)}  # fmt: skip


def textvqa() -> dict:
    rows = [{"question": "what is the brand of this camera?", "image_id": f"003a8ae2ef43b90{n}",
             "question_id": 34602 + n, "image_classes": ["Camera"], "flickr_original_url": "", "image_width": 1024,
             "image_height": 664, "set_name": "val",
             "answers": ["dakota"] * 8 + ["nous les gosses", "dakota digital"]}
            for n in range(3)]  # fmt: skip
    return {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1", "data": rows}


def sst2(folder: Path) -> Path:
    """GLUE's SST-2 as ``dev.tsv`` in the folder: a header, sentences, some with unbalanced quotes, and labels."""
    folder.mkdir(exist_ok=True)
    lines = ["sentence\tlabel"]
    for text, label in zip(TEXTS, LABELS, strict=True):
        lines.append(f'{"`` " if len(lines) > 1 else ""}{text.strip()} "\t{label}')
    (folder / "dev.tsv").write_text("\n".join(lines) + "\n")
    return folder / "dev.tsv"
