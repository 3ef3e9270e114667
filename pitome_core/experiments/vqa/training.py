"""Training the LLaVA of `llava`: first its projector, then projector and low-rank updates of the language model.

The tower stays as it is. *Align*: the projector learns to give a patch on an object the word embedding of the object's
name. *Tune*: it and the updates learn to answer, on scenes that are drawn for the occasion and never twice. The three
questions of a scene stand behind one picture, each blind to the others (`block_mask`), which is as if each were asked
alone. In every step a random share of the image tokens, up to `Recipe.dropped`, is left out, the rest keep their
positions: so the model has seen fewer tokens than patches, in a way that favours no method of merging.

The same on CPU and CUDA, where the language model runs in bfloat16 and pictures are drawn by worker processes. All
random choices follow from seed and step, so training goes on from its checkpoint, kept in the cache, as if it had never
stopped. What came of it is in ``vqa-training.jsonl`` and, beside the weights, in ``vqa.json``: accuracy on the stream
``validation``, and the types of question that beat their blind prior there, which make the headline from then on.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from pitome_core.experiments import assets, settings
from pitome_core.experiments.data import questions
from pitome_core.experiments.data.pictures import PATCH
from pitome_core.experiments.models import llava, llava_answers, vit
from pitome_core.experiments.records import results, weight_files
from pitome_core.experiments.records.statistics import bootstrap_mean

LOG = "vqa-training"
STREAM, VALIDATION = "train", "validation"
VALIDATED = 3600  # questions of the validation stream that decide about the headline
KNOWN = 20_000  # questions of the train stream that blind priors come from
GRID = llava.SIDE // PATCH  # patches to a side
INNER = 0.8  # of an object's square: patches with their middle in here are its own, those in the rest nobody's
BACKGROUND = "background"  # the word for patches outside all squares
IGNORED = -1
NAMES = (BACKGROUND, *questions.CLASSES)
REPORT = 50  # steps between lines of the log
SAVE = 300  # seconds between checkpoints
MICRO = 8  # scenes that pass a CPU at a time; their gradients add up to those of the batch


@dataclass(frozen=True)
class Recipe:
    """How the weights are made. Rates are the highest, after ``warm_up`` (a share of the steps) and before the cosine
    fall; ``clip`` is of the gradient's norm; ``dropped`` the largest share of image tokens left out."""

    seed: int = 0
    batch: int = 32  # scenes, with three questions each
    align_steps: int = 150
    steps: int = 600
    align_rate: float = 2e-3
    rate: float = 8e-4  # of the updates
    projector_rate: float = 8e-4
    warm_up: float = 0.03
    decay: float = 0.01
    clip: float = 1.0
    dropped: float = 0.4
    rank: int = llava.RANK

    @property
    def total(self) -> int:
        """Steps of both kinds."""
        return self.align_steps + self.steps

    @property
    def fingerprint(self) -> str:
        """Of all that a checkpoint hangs on: recipe, questions, tower and language model."""
        parts = [asdict(self), questions.VERSION, *(assets.ASSETS[a].sha256 for a in (vit.ASSET, llava.ASSET))]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


# --- examples


class Scenes(Dataset):
    """Scenes of a stream as tensors, drawn when they are asked for, in whichever process."""

    def __init__(self, stream: str):
        self.stream = stream

    def __getitem__(self, number: int) -> dict[str, Any]:
        scene = questions.scene(self.stream, number)
        return {
            "pixels": torch.from_numpy(questions.picture(scene)).permute(2, 0, 1).contiguous(),  # (3, s, s) uint8
            "things": things(scene),
            "texts": [tokens_of(q.text, q.answer) for q in scene.questions],
        }


@functools.lru_cache(maxsize=100_000)
def tokens_of(question: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a question, from behind the picture to where the answer begins, and of the answer with its end."""
    words = llava.tokenizer()
    ((_, behind),) = llava_answers.encode(words, [llava.prompt(question)], llava.IMAGE_TOKEN)
    return behind, tuple(words(answer + llava.END)["input_ids"])


@functools.cache
def before() -> tuple[int, ...]:
    """Token ids before the picture."""
    ((found, _),) = llava_answers.encode(llava.tokenizer(), [llava.prompt("?")], llava.IMAGE_TOKEN)
    return found


def things(scene: questions.Scene) -> Tensor:
    """`(144,)` long: which of `NAMES` every patch shows; `IGNORED` where it may be either."""
    middle = (np.arange(GRID) + 0.5) / GRID
    found = np.zeros((GRID, GRID), dtype=np.int64)
    for thing in scene.placed:
        away = np.maximum(abs(middle[:, None] - thing.y), abs(middle[None, :] - thing.x)) / (thing.side / 2)
        found[away <= 1 + 1 / GRID / thing.side] = IGNORED
        found[away <= INNER] = NAMES.index(thing.name)
    return torch.from_numpy(found).flatten()


def collate(examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch of B scenes, texts padded on the right to T tokens.

    ``ids``, ``segments`` (1, 2, 3 for the questions, one more for padding) and ``offsets`` (position behind the
    picture) are `(B, T)`; ``asked (n,)`` are the places among all B T that predict ``targets (n,)``, the answers.
    """
    rows = [example["texts"] for example in examples]
    width = max(sum(len(question) + len(answer) - 1 for question, answer in row) for row in rows)
    ids = torch.zeros(len(rows), width, dtype=torch.long)
    segments, offsets = torch.full_like(ids, max(map(len, rows)) + 1), torch.zeros_like(ids)
    asked, targets = [], []
    for i, row in enumerate(rows):
        place = 0
        for number, (question, answer) in enumerate(row, start=1):
            words = [*question, *answer[:-1]]  # nothing follows the last token
            here = slice(place, place + len(words))
            ids[i, here], segments[i, here] = torch.tensor(words), number
            offsets[i, here] = torch.arange(len(words))
            first = i * width + place + len(question) - 1
            asked += range(first, first + len(answer))
            targets += answer
            place += len(words)
    return {
        "pixels": torch.stack([e["pixels"] for e in examples]), "things": torch.stack([e["things"] for e in examples]),
        "ids": ids, "segments": segments, "offsets": offsets, "asked": torch.tensor(asked),
        "targets": torch.tensor(targets),
    }


def batches(recipe: Recipe, first: int, device: torch.device) -> Iterator[list[dict[str, Tensor]]]:
    """The batches of steps ``first`` to the last on the device, each in the parts that it is worked through in."""
    size = recipe.batch if device.type == "cuda" else min(MICRO, recipe.batch)
    if recipe.batch % size:
        raise ValueError(f"batch {recipe.batch} is no multiple of {size}, as a CPU needs it")
    start, stop = first * recipe.batch, recipe.total * recipe.batch
    numbers = [list(range(i, i + size)) for i in range(start, stop, size)]
    workers = llava.drawing_workers(device)
    more = {"prefetch_factor": 4, "persistent_workers": True, "pin_memory": True} if workers else {}
    loader = DataLoader(Scenes(STREAM), batch_sampler=numbers, collate_fn=collate, num_workers=workers, **more)
    parts = ({name: value.to(device, non_blocking=True) for name, value in part.items()} for part in loader)
    while step := list(itertools.islice(parts, recipe.batch // size)):
        yield step


# --- losses


@torch.no_grad()
def tower_features(model: nn.Module, pixels: Tensor) -> Tensor:
    """What the projector reads of pictures `(B, 3, s, s)` uint8: `(B, N, 384)` float32."""
    states = model.model.vision_tower(llava.normalised(pixels), output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer][:, 1:]


def kept_tokens(recipe: Recipe, step: int, scenes: int, patches: int) -> Tensor:
    """`(scenes, k)` long, ascending: the image tokens that stay in a step. Follows from seed and step alone."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([recipe.seed, step]).generate_state(1)[0]))
    share = 1 - recipe.dropped * torch.rand((), generator=generator).item()
    count = max(1, round(share * patches))
    return torch.rand(scenes, patches, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values


def block_mask(segments: Tensor) -> Tensor:
    """`(B, T)` long -> `(B, 1, T, T)` bool: each token sees those before it of segment 0 (what all share) and its own.
    """
    own = segments[:, :, None] == segments[:, None, :]
    seen = (own | (segments == 0)[:, None, :]).tril()
    return seen[:, None]


def answer_loss(model: nn.Module, features: Tensor, positions: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the answers' tokens, summed. ``features (B, k, 384)`` of the tokens that stay, ``positions
    (B, k)`` theirs on the grid, of `llava.PATCHES`."""
    inner, ahead = model.model, before()
    words = inner.language_model.embed_tokens
    count, width = positions.shape
    first = torch.tensor(ahead, device=positions.device).expand(count, -1)
    image = inner.multi_modal_projector(features)
    x = torch.cat([words(first), image.to(words.weight.dtype), words(batch["ids"])], dim=1)  # (B, P + k + T, C)
    places = torch.cat([
        torch.arange(len(ahead), device=positions.device).expand(count, -1), len(ahead) + positions,
        len(ahead) + llava.PATCHES + batch["offsets"],
    ], dim=1)
    segments = torch.cat([places.new_zeros(count, len(ahead) + width), batch["segments"]], dim=1)
    states = inner.language_model(
        inputs_embeds=x, attention_mask=block_mask(segments), position_ids=places, use_cache=False
    ).last_hidden_state[:, len(ahead) + width :]
    logits = model.lm_head(states.flatten(0, 1).index_select(0, batch["asked"])).float()  # (n, vocabulary)
    return nn.functional.cross_entropy(logits, batch["targets"], reduction="sum")


@torch.no_grad()
def name_embeddings(model: nn.Module) -> Tensor:
    """`(len(NAMES), C)`: the mean word embedding of each name's tokens."""
    words, table = llava.tokenizer(), model.model.language_model.embed_tokens.weight
    return torch.stack([table[words(f" {name}")["input_ids"]].mean(dim=0) for name in NAMES])


def align_loss(model: nn.Module, features: Tensor, batch: dict[str, Tensor], table: Tensor) -> Tensor:
    """Squared distance of projected patches to their name's embedding, in variances of ``table``; patches on objects
    and on background weigh the same in total. Mean over the two, times the number of scenes."""
    given = model.model.multi_modal_projector(features)  # (B, N, C)
    away = (given - table[batch["things"].clamp_min(0)]).square().mean(dim=-1) / table.var()
    sides = [batch["things"] > 0, batch["things"] == 0]
    return len(features) * sum((away * side).sum() / side.sum().clamp_min(1) for side in sides) / 2


# --- training


@dataclass
class State:
    """A training under way: ``step`` of `Recipe.total` is the next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    step: int
    losses: list[tuple[int, float]]


def begin(recipe: Recipe, device: torch.device) -> State:
    """The model with fresh updates, at step 0."""
    model = llava.assemble(recipe.seed, device)
    llava.adapt(model, recipe.seed, recipe.rank)
    model.model.multi_modal_projector.requires_grad_(True)
    return State(model, _optimizer(model, recipe, 0), 0, [])


def _optimizer(model: nn.Module, recipe: Recipe, step: int) -> torch.optim.Optimizer:
    """Of the projector alone while it is aligned, of all that is ours after that."""
    projector = list(model.model.multi_modal_projector.parameters())
    groups = [{"params": projector, "peak": recipe.align_rate}]
    if step >= recipe.align_steps:
        updates = [p for p in model.model.language_model.parameters() if p.requires_grad]
        groups = [{"params": projector, "peak": recipe.projector_rate}, {"params": updates, "peak": recipe.rate}]
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=recipe.decay, fused=projector[0].is_cuda)


def height(recipe: Recipe, step: int) -> float:
    """The share of its peak that a rate has at a step: each of the two kinds of step warms up and falls."""
    done, steps = (step, recipe.align_steps) if step < recipe.align_steps else (
        step - recipe.align_steps, recipe.steps)
    warm = max(1, round(recipe.warm_up * steps))
    return min((done + 1) / warm, 0.5 + 0.5 * math.cos(math.pi * done / steps))


def advance(state: State, parts: Sequence[dict[str, Tensor]], recipe: Recipe, table: Tensor) -> Tensor:
    """One step on the parts of a batch; its loss (a mean over scenes or over the answers' tokens), on the device."""
    model, step = state.model, state.step
    aligning = step < recipe.align_steps
    if step == recipe.align_steps:
        state.optimizer = _optimizer(model, recipe, step)
    device = parts[0]["pixels"].device
    scale = 1 / (recipe.batch if aligning else sum(len(part["targets"]) for part in parts))
    kept = kept_tokens(recipe, step, recipe.batch, llava.PATCHES).to(device, non_blocking=True)
    total = torch.zeros((), device=device)
    for part, here in zip(parts, kept.split(len(parts[0]["pixels"])), strict=True):
        features = tower_features(model, part["pixels"])
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" and not aligning else nullcontext():
            if aligning:
                loss = align_loss(model, features, part, table)
            else:
                chosen = features.gather(1, here[..., None].expand(-1, -1, features.shape[2]))
                loss = answer_loss(model, chosen, here, part)
        (scale * loss).backward()
        total += scale * loss.detach()
    for group in state.optimizer.param_groups:
        group["lr"] = group["peak"] * height(recipe, step)
    nn.utils.clip_grad_norm_([p for g in state.optimizer.param_groups for p in g["params"]], recipe.clip)
    state.optimizer.step()
    state.optimizer.zero_grad()
    state.step += 1
    return total


def checkpoint_path(recipe: Recipe) -> Path:
    """Where training goes on from."""
    return settings.cache_dir() / "vqa-training" / f"{recipe.fingerprint}.pt"


def save_checkpoint(state: State, recipe: Recipe) -> None:
    """Write weights, optimiser, step and losses: all or nothing. Random choices follow from the step."""
    path = checkpoint_path(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    torch.save({"step": state.step, "ours": llava.ours(state.model), "optimizer": state.optimizer.state_dict(),
                "losses": [list(pair) for pair in state.losses]}, new)
    new.replace(path)


def resume(recipe: Recipe, device: torch.device) -> State:
    """The training as its checkpoint has it, or at its beginning."""
    state, path = begin(recipe, device), checkpoint_path(recipe)
    if not path.is_file():
        return state
    found = torch.load(path, map_location=device, weights_only=True)
    with torch.no_grad():
        for name, value in llava.ours(state.model).items():
            value.copy_(found["ours"][name])
    # At the first step of a kind the optimiser is made anew in any case.
    state.optimizer = _optimizer(state.model, recipe, max(found["step"] - 1, 0))
    state.optimizer.load_state_dict(found["optimizer"])
    state.step, state.losses = found["step"], [tuple(pair) for pair in found["losses"]]
    return state


def train(recipe: Recipe, minutes: float = math.inf, log: Path | None = None) -> State:
    """Go on until the last step or until ``minutes`` are over, and leave a checkpoint."""
    device, begun = settings.device(), time.monotonic()
    state = resume(recipe, device)
    table = name_embeddings(state.model)
    saved = reported = time.monotonic()
    sums, first = torch.zeros((), device=device), state.step
    for parts in batches(recipe, state.step, device):
        sums += advance(state, parts, recipe, table)
        now, ended = time.monotonic(), state.step in (recipe.align_steps, recipe.total)
        late = now - begun > 60 * minutes
        if state.step % REPORT == 0 or ended or late:
            loss, count = round(float(sums) / (state.step - first), 4), state.step - first  # waits for the device
            now = time.monotonic()
            speed = count * recipe.batch / max(now - reported, 1e-9)
            state.losses.append((state.step, loss))
            kind = "align" if state.step <= recipe.align_steps else "tune"
            about = {"step": state.step, "kind": kind, "loss": loss, "scenes_per_second": round(speed, 1)}
            results.note(LOG, about | {"recipe": recipe.fingerprint}, log)
            print(f"  {kind} {state.step} of {recipe.total}: loss {loss:.4f}, {speed:.1f} scenes/s", flush=True)
            sums.zero_()
            first, reported = state.step, now
            if not math.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss} at step {state.step}: lower the rate in the recipe")
        if now - saved > SAVE:
            save_checkpoint(state, recipe)
            saved = now
        if late:
            break
    save_checkpoint(state, recipe)
    return state


# --- what it is worth


@torch.no_grad()
def validate(model: nn.Module, count: int = VALIDATED, stream: str = VALIDATION) -> dict[str, dict[str, float]]:
    """Accuracy by type on the first ``count`` questions of a stream, with its 95 % interval over scenes and its prior.

    ``{type: {"accuracy", "low", "high", "prior", "items"}}``; the model is one without `llava.LowRank` around its maps.
    """
    asked = list(questions.QuestionStream(stream, count))
    scenes = list(dict.fromkeys(question.scene for question in asked))
    place = {scene: i for i, scene in enumerate(scenes)}
    pixels = llava.draw([(stream, scene) for scene in scenes], model.device)
    answers = llava.ask(model, pixels, [q.text for q in asked], [place[q.scene] for q in asked])
    prior = questions.blind_prior(questions.QuestionStream(STREAM, KNOWN), asked)
    found = {}
    for kind in questions.TYPES:
        members = [i for i, question in enumerate(asked) if question.type == kind]
        if members:
            right = [float(answers[i] == asked[i].answer) for i in members]
            mean, low, high = bootstrap_mean(right, [asked[i].scene for i in members])
            values = {"accuracy": mean, "low": low, "high": high, "prior": prior[kind]}
            found[kind] = {name: round(value, 4) for name, value in values.items()} | {"items": len(members)}
    return found


def headline(validation: dict[str, dict[str, float]]) -> list[str]:
    """The types that beat their prior: it lies below the interval of their accuracy."""
    return [kind for kind, about in validation.items() if about["low"] > about["prior"]]


def sheet_path(weights: Path | None = None) -> Path:
    """``vqa.json``, beside the weights."""
    return (weights or llava.weights_path()).with_suffix(".json")


def sheet(weights: Path | None = None) -> dict[str, Any]:
    """What training noted about the weights: recipe, losses, accuracy on validation, types of the headline.

    Raises ``results.RecordError`` where it is missing or is about other weights.
    """
    weights = weights or llava.weights_path()
    path = sheet_path(weights)
    if not (path.is_file() and weights.is_file()):
        raise results.RecordError(f"no {weights.name} with {path.name}: run `make vqa-weights`")
    found = json.loads(path.read_text(encoding="utf-8"))
    if found["weights"] != weight_files.digest(weights):
        raise results.RecordError(f"{path.name} is about other weights than {weights.name}: run `make vqa-weights`")
    return found


def finish(state: State, recipe: Recipe, weights: Path, count: int = VALIDATED, log: Path | None = None) -> None:
    """Store the weights, then load and validate them as they will be used, and write the sheet."""
    llava.save(llava.ours(state.model), weights)
    model = llava.llava(weights, settings.device())
    found = validate(model, count)
    about = {
        "weights": weight_files.digest(weights), "recipe": asdict(recipe), "questions": questions.VERSION,
        "steps": state.step, "scenes": state.step * recipe.batch, "validation": found, "headline": headline(found),
    }
    made = results.provenance(recipe.seed)
    kept = {name: made[name] for name in ("date", "code", "device", "packages", "command")}
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in
                       (about | {"losses": state.losses, "made": kept}).items())
    results.write_atomically(sheet_path(weights), f"{{\n{lines}\n}}\n")
    results.note(LOG, about, log)
    for kind, row in found.items():
        print(f"  {kind:9s} {row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}], prior {row['prior']:.3f}",
              flush=True)


def run(
    recipe: Recipe = Recipe(),
    *, minutes: float = math.inf, again: bool = False, early: bool = False, estimate_only: bool = False,
    weights: Path | None = None, count: int = VALIDATED, log: Path | None = None,
) -> int:
    """Train until the weights are there or ``minutes`` are over. Returns how many steps are left.

    ``early`` makes weights of what is there when time is over. ``again`` trains anew, from nothing.
    """
    weights = weights or results.writable(committed=True) / "vqa-weights" / "vqa.safetensors"
    if again:
        checkpoint_path(recipe).unlink(missing_ok=True)
    elif weights.is_file() and sheet_path(weights).is_file():
        print(f"vqa-weights: {weights.name} is there")
        return 0
    print(f"vqa-weights: {recipe.total} steps of {recipe.batch} scenes ({recipe.fingerprint})", flush=True)
    if estimate_only:
        return recipe.total
    state = train(recipe, minutes, log)
    left = recipe.total - state.step
    if left and not early:
        print(f"  {left} steps left after {minutes:g} minutes: run it again to go on", flush=True)
        return left
    finish(state, recipe, weights, count, log)
    checkpoint_path(recipe).unlink(missing_ok=True)
    return 0
