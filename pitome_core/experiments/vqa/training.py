"""Training the LLaVA of `llava`: first its projector, then projector and low-rank updates of the language model.

The tower stays as it is. *Align*: the projector learns to give a patch on an object the word embedding of the object's
name. *Tune*: projector and updates learn to answer questions. Scenes are drawn during training, and none comes twice.
The three questions of a scene stand behind one picture. No question attends to another one (`block_mask`), so the loss
is that of questions asked alone. In every step a random share of the image tokens, up to `LlavaRecipe.dropped`, is left
out, and the others keep their positions. So the model learns to read fewer tokens than patches, and no method of
merging is favoured.

Training is the same on CPU and CUDA, except that on CUDA the language model runs in bfloat16 and pictures are drawn by
worker processes. All random choices follow from seed and step, so a training that goes on from its checkpoint, kept in
the cache, ends with the same weights as one that was never stopped. Results are in ``vqa-training.jsonl`` and, beside
the weights, in ``vqa.json``: accuracy on the stream ``validation``, and the types of question whose accuracy is above
their blind prior there. These types make the headline.
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
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from pitome_core.experiments import assets, settings
from pitome_core.experiments.data import questions
from pitome_core.experiments.data.pictures import PATCH
from pitome_core.experiments.models import llava, llava_answers, low_rank, vit
from pitome_core.experiments.records import files, provenance, results
from pitome_core.experiments.records.fingerprint import code_of
from pitome_core.experiments.records.statistics import mean_interval
from pitome_core.experiments.runs.stages import Budget, Stage, run_stages

LOG = "vqa-training"
STREAM, VALIDATION = "train", "validation"
VALIDATED = 3600  # questions of the validation stream that decide about the headline
KNOWN = 20_000  # questions of the train stream that blind priors come from
GRID = llava.SIDE // PATCH  # patches to a side
# Share of an object's square. A patch shows the object if its middle lies inside this share. Between this share and the
# edge of the square a patch is `IGNORED`.
INNER = 0.8
BACKGROUND = "background"  # the word for patches outside all squares
IGNORED = -1
NAMES = (BACKGROUND, *questions.CLASSES)
REPORT = 50  # steps between lines of the log
SAVE = 300  # seconds between checkpoints
MICRO = 8  # scenes that a CPU works on at a time; their gradients add up to those of the batch
CHECKPOINT_VERSION = 2  # raise it when training changes: checkpoints of other versions are not continued


@dataclass(frozen=True)
class LlavaRecipe:
    """How the weights are made.

    Rates are the highest ones. Each of the two kinds of step has a schedule of its own: the rate rises from 0 for a
    share ``warm_up`` of the steps, then falls to 0 as a cosine does. ``clip`` is the largest norm of the gradient,
    ``dropped`` the largest share of image tokens that are left out.
    """

    # The shipped weights were trained with a schedule of our own. Its rate rose from 1 / (number of warm-up steps) in
    # place of 0, and its cosine began at the first step of a kind in place of the end of the warm-up.
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
    rank: int = low_rank.RANK

    @property
    def total(self) -> int:
        """Steps of both kinds."""
        return self.align_steps + self.steps

    @property
    def fingerprint(self) -> str:
        """A hash of all that a checkpoint depends on: recipe, questions, tower, language model, way of training."""
        parts = [asdict(self), questions.VERSION, *(assets.ASSETS[a].sha256 for a in (vit.ASSET, llava.ASSET))]
        parts.append(CHECKPOINT_VERSION)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


# --- examples


def example(number: int) -> dict[str, Any]:
    """A scene of the stream `STREAM`: its picture ``pixels (3, s, s)`` uint8, ``things``, and tokens of its questions.
    """
    scene = questions.scene(STREAM, number)
    texts = [tokens_of(question.text, question.answer) for question in scene.questions]
    return {"pixels": llava.picture(scene), "things": things(scene), "texts": texts}


@functools.lru_cache(maxsize=100_000)
def tokens_of(question: str, answer: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Token ids of a question, from behind the picture to where the answer begins, and of the answer with its end."""
    words = llava.tokenizer()
    ((_, behind),) = llava_answers.encode(words, [llava.prompt(question)], llava.IMAGE_TOKEN)
    return behind, tuple(words(answer + llava.END)["input_ids"])


@functools.cache
def before() -> tuple[int, ...]:
    """Token ids before the picture."""
    ((ids, _),) = llava_answers.encode(llava.tokenizer(), [llava.prompt("?")], llava.IMAGE_TOKEN)
    return ids


def things(scene: questions.Scene) -> Tensor:
    """`(144,)` long: which of `NAMES` every patch shows; `IGNORED` where it may be either."""
    middle = (np.arange(GRID) + 0.5) / GRID
    names = np.zeros((GRID, GRID), dtype=np.int64)
    for thing in scene.placed:
        distance = np.maximum(abs(middle[:, None] - thing.y), abs(middle[None, :] - thing.x)) / (thing.side / 2)
        names[distance <= 1 + 1 / GRID / thing.side] = IGNORED
        names[distance <= INNER] = NAMES.index(thing.name)
    return torch.from_numpy(names).flatten()


def batch_of(numbers: Sequence[int]) -> dict[str, Tensor]:
    """A batch of the B scenes of these numbers, texts padded on the right to T tokens.

    ``ids``, ``segments`` (1, 2, 3 for the questions, one more for padding) and ``offsets`` (position behind the
    picture) are `(B, T)`; ``asked (n,)`` are the places among all B T that predict ``targets (n,)``, the answers.
    """
    examples = [example(number) for number in numbers]
    rows, asked, targets = [], [], []
    for i, texts in enumerate(each["texts"] for each in examples):
        row: list[tuple[int, int, int]] = []  # id, segment and offset of every token
        for segment, (question, answer) in enumerate(texts, start=1):
            asked += [(i, len(row) + len(question) - 1 + place) for place in range(len(answer))]
            targets += answer
            tokens = [*question, *answer[:-1]]  # the last token predicts nothing
            row += [(token, segment, offset) for offset, token in enumerate(tokens)]
        rows.append(torch.tensor(row))  # (T of this scene, 3)
    ids, segments, offsets = pad_sequence(rows, batch_first=True).unbind(2)  # (B, T) each
    padding = max(len(each["texts"]) for each in examples) + 1
    return {
        "pixels": torch.stack([e["pixels"] for e in examples]), "things": torch.stack([e["things"] for e in examples]),
        "ids": ids, "segments": segments.masked_fill(segments == 0, padding), "offsets": offsets,
        "asked": torch.tensor([i * ids.shape[1] + place for i, place in asked]), "targets": torch.tensor(targets),
    }


def batches(recipe: LlavaRecipe, first: int, device: torch.device) -> Iterator[list[dict[str, Tensor]]]:
    """The batches of steps ``first`` to the last on the device, each in the parts that it is worked through in."""
    size = recipe.batch if device.type == "cuda" else min(MICRO, recipe.batch)
    if recipe.batch % size:
        raise ValueError(f"batch {recipe.batch} is no multiple of {size}, as a CPU needs it")
    numbers = range(first * recipe.batch, recipe.total * recipe.batch)
    workers = llava.drawing_workers(device)
    more = {"prefetch_factor": 4, "persistent_workers": True, "pin_memory": True} if workers else {}
    loader = DataLoader(numbers, batch_size=size, collate_fn=batch_of, num_workers=workers, **more)
    parts = ({name: value.to(device, non_blocking=True) for name, value in part.items()} for part in loader)
    while step := list(itertools.islice(parts, recipe.batch // size)):
        yield step


# --- losses


@torch.no_grad()
def tower_features(model: nn.Module, pixels: Tensor) -> Tensor:
    """What the projector reads of pictures `(B, 3, s, s)` uint8: `(B, N, 384)` float32."""
    states = model.model.vision_tower(llava.normalised(pixels), output_hidden_states=True).hidden_states
    return states[model.config.vision_feature_layer][:, 1:]


def kept_tokens(recipe: LlavaRecipe, step: int, scenes: int, patches: int) -> Tensor:
    """`(scenes, k)` long, ascending: the image tokens that stay in a step. Follows from seed and step alone."""
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence([recipe.seed, step]).generate_state(1)[0]))
    share = 1 - recipe.dropped * torch.rand((), generator=generator).item()
    count = max(1, round(share * patches))
    return torch.rand(scenes, patches, generator=generator).argsort(dim=1)[:, :count].sort(dim=1).values


def block_mask(segments: Tensor) -> Tensor:
    """`(B, T)` long -> `(B, 1, T, T)` bool: which earlier tokens each token attends to.

    These are the tokens of segment 0, which all questions share, and those of the token's own segment.
    """
    own = segments[:, :, None] == segments[:, None, :]  # (B, T, T)
    return (own | (segments == 0)[:, None, :]).tril()[:, None]  # (B, 1, T, T)


def answer_loss(model: nn.Module, features: Tensor, positions: Tensor, batch: dict[str, Tensor]) -> Tensor:
    """Cross-entropy of the answers' tokens, summed.

    ``features (B, k, 384)`` are those of the image tokens that stay, ``positions (B, k)`` their places on the grid of
    `llava.PATCHES`.
    """
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
    """Squared distance of projected patches to their name's embedding, in variances of ``table``.

    The mean over patches on objects and the mean over patches on background count one half each; their sum is
    multiplied with the number of scenes.
    """
    projected = model.model.multi_modal_projector(features)  # (B, N, C)
    distance = (projected - table[batch["things"].clamp_min(0)]).square().mean(dim=-1) / table.var()
    sides = [batch["things"] > 0, batch["things"] == 0]
    return len(features) * sum((distance * side).sum() / side.sum().clamp_min(1) for side in sides) / 2


# --- training


@dataclass
class State:
    """A training under way: ``step`` of `LlavaRecipe.total` is the next."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    step: int
    losses: list[tuple[int, float]]


def begin(recipe: LlavaRecipe, device: torch.device) -> State:
    """The model with fresh updates, at step 0."""
    model = llava.assemble(recipe.seed, device)
    llava.adapt(model, recipe.seed, recipe.rank)
    model.model.multi_modal_projector.requires_grad_(True)
    return State(model, *optimization(model, recipe, 0), 0, [])


def optimization(
    model: nn.Module, recipe: LlavaRecipe, step: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Optimiser and schedule for the kind of ``step``, at its beginning.

    Steps that align train the projector alone; steps that tune train projector and updates.
    """
    from transformers import get_cosine_schedule_with_warmup

    projector = list(model.model.multi_modal_projector.parameters())
    groups, steps = [{"params": projector, "lr": recipe.align_rate}], recipe.align_steps
    if step >= recipe.align_steps:
        updates = [p for p in model.model.language_model.parameters() if p.requires_grad]
        groups = [{"params": projector, "lr": recipe.projector_rate}, {"params": updates, "lr": recipe.rate}]
        steps = recipe.steps
    optimizer = torch.optim.AdamW(groups, weight_decay=recipe.decay, fused=projector[0].is_cuda)
    return optimizer, get_cosine_schedule_with_warmup(optimizer, round(recipe.warm_up * steps), steps)


def advance(state: State, parts: Sequence[dict[str, Tensor]], recipe: LlavaRecipe, table: Tensor) -> Tensor:
    """One step on the parts of a batch; its loss (a mean over scenes or over the answers' tokens), on the device."""
    model, step = state.model, state.step
    aligning = step < recipe.align_steps
    if step == recipe.align_steps:
        state.optimizer, state.schedule = optimization(model, recipe, step)
    device = parts[0]["pixels"].device
    scale = 1 / (recipe.batch if aligning else sum(len(part["targets"]) for part in parts))
    kept = kept_tokens(recipe, step, recipe.batch, llava.PATCHES).to(device, non_blocking=True)
    total = torch.zeros((), device=device)
    for part, positions in zip(parts, kept.split(len(parts[0]["pixels"])), strict=True):
        features = tower_features(model, part["pixels"])
        with torch.autocast("cuda", torch.bfloat16) if device.type == "cuda" and not aligning else nullcontext():
            if aligning:
                loss = align_loss(model, features, part, table)
            else:
                chosen = features.gather(1, positions[..., None].expand(-1, -1, features.shape[2]))
                loss = answer_loss(model, chosen, positions, part)
        (scale * loss).backward()
        total += scale * loss.detach()
    nn.utils.clip_grad_norm_([p for g in state.optimizer.param_groups for p in g["params"]], recipe.clip)
    state.optimizer.step()
    state.schedule.step()
    state.optimizer.zero_grad()
    state.step += 1
    return total


def checkpoint_path(recipe: LlavaRecipe) -> Path:
    """The file from which a training goes on."""
    return settings.cache_dir() / "vqa-training" / f"{recipe.fingerprint}.pt"


def save_checkpoint(state: State, recipe: LlavaRecipe) -> None:
    """Write weights, optimiser, schedule, step and losses: all or nothing. Random choices follow from the step."""
    path = checkpoint_path(recipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.new")
    torch.save({"step": state.step, "ours": llava.ours(state.model), "optimizer": state.optimizer.state_dict(),
                "schedule": state.schedule.state_dict(), "losses": [list(pair) for pair in state.losses]}, new)
    new.replace(path)


def resume(recipe: LlavaRecipe, device: torch.device) -> State:
    """The training as its checkpoint has it, or at its beginning."""
    state, path = begin(recipe, device), checkpoint_path(recipe)
    if not path.is_file():
        return state
    checkpoint = torch.load(path, map_location=device, weights_only=True)
    with torch.no_grad():
        for name, value in llava.ours(state.model).items():
            value.copy_(checkpoint["ours"][name])
    # Those of the step before: at the first step of a kind `advance` makes new ones.
    state.optimizer, state.schedule = optimization(state.model, recipe, max(checkpoint["step"] - 1, 0))
    state.optimizer.load_state_dict(checkpoint["optimizer"])
    state.schedule.load_state_dict(checkpoint["schedule"])
    state.step, state.losses = checkpoint["step"], [tuple(pair) for pair in checkpoint["losses"]]
    return state


def train(recipe: LlavaRecipe, budget: Budget, log: Path | None = None) -> State:
    """Go on until the last step or until the budget is over, and leave a checkpoint."""
    device = settings.device()
    state = resume(recipe, device)
    table = name_embeddings(state.model)
    saved = reported = time.monotonic()
    sums, first = torch.zeros((), device=device), state.step
    for parts in batches(recipe, state.step, device):
        sums += advance(state, parts, recipe, table)
        now, ended = time.monotonic(), state.step in (recipe.align_steps, recipe.total)
        late = budget.over()
        if state.step % REPORT == 0 or ended or late:
            loss, count = round(float(sums) / (state.step - first), 4), state.step - first  # waits for the device
            now = time.monotonic()
            speed = count * recipe.batch / max(now - reported, 1e-9)
            state.losses.append((state.step, loss))
            kind = "align" if state.step <= recipe.align_steps else "tune"
            about = {"step": state.step, "kind": kind, "loss": loss, "scenes_per_second": round(speed, 1)}
            provenance.note(LOG, about | {"recipe": recipe.fingerprint}, code_of(train), log)
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


# --- validation


@torch.no_grad()
def validate(model: nn.Module, count: int = VALIDATED, stream: str = VALIDATION) -> dict[str, dict[str, float]]:
    """Accuracy by type on the first ``count`` questions of a stream, with its 95 % interval over scenes and its prior.

    ``{type: {"accuracy", "low", "high", "prior", "items"}}``; the model is one as `llava.llava` gives it.
    """
    chosen = list(questions.QuestionStream(stream, count))
    scenes = list(dict.fromkeys(question.scene for question in chosen))
    place = {scene: i for i, scene in enumerate(scenes)}
    pixels = llava.draw([(stream, scene) for scene in scenes], model.device)
    answers = llava.ask(model, pixels, [q.text for q in chosen], [place[q.scene] for q in chosen])
    prior = questions.blind_prior(questions.QuestionStream(STREAM, KNOWN), chosen)
    by_type = {}
    for kind in questions.TYPES:
        members = [i for i, question in enumerate(chosen) if question.type == kind]
        if members:
            right = [float(answers[i] == chosen[i].answer) for i in members]
            mean, low, high = mean_interval(right, [chosen[i].scene for i in members])
            values = {"accuracy": mean, "low": low, "high": high, "prior": prior[kind]}
            by_type[kind] = {name: round(value, 4) for name, value in values.items()} | {"items": len(members)}
    return by_type


def headline(validation: dict[str, dict[str, float]]) -> list[str]:
    """The types whose accuracy is above their prior: the whole interval of the accuracy lies above it.

    A type with a single scene has no interval (NaN, or None where it was read from a file) and is none of them.
    """
    lows = {kind: about["low"] for kind, about in validation.items()}
    return [kind for kind, low in lows.items() if low is not None and low > validation[kind]["prior"]]


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
    about = files.read_json(path)
    if not isinstance(about, dict) or about.get("weights") != files.digest(weights):
        raise results.RecordError(f"{path.name} is about other weights than {weights.name}: run `make vqa-weights`")
    return about


def finish(state: State, recipe: LlavaRecipe, weights: Path, count: int = VALIDATED, log: Path | None = None) -> None:
    """Store the weights, then load and validate them as they will be used, and write the sheet."""
    llava.save(llava.ours(state.model), weights)
    model = llava.llava(weights, settings.device())
    validation = validate(model, count)
    about = {
        "weights": files.digest(weights), "recipe": asdict(recipe), "questions": questions.VERSION,
        "steps": state.step, "scenes": state.step * recipe.batch, "validation": validation,
        "headline": headline(validation),
    }
    origin = provenance.of_run(code_of(train), recipe.seed)
    kept = {name: origin[name] for name in ("date", "code", "device", "packages", "command")}
    content = files.plain(about | {"losses": state.losses, "made": kept})
    lines = ",\n".join(f" {json.dumps(name)}: {json.dumps(value)}" for name, value in content.items())
    files.write_atomically(sheet_path(weights), f"{{\n{lines}\n}}\n")
    provenance.note(LOG, about, code_of(train), log)
    for kind, row in validation.items():
        print(f"  {kind:9s} {row['accuracy']:.3f} [{row['low']:.3f}, {row['high']:.3f}], prior {row['prior']:.3f}",
              flush=True)


def run(
    recipe: LlavaRecipe = LlavaRecipe(),
    *, minutes: float = math.inf, again: bool = False, early: bool = False, estimate_only: bool = False,
    weights: Path | None = None, count: int = VALIDATED, log: Path | None = None,
) -> int:
    """Train the weights if they are missing. Returns how many steps are left.

    ``minutes`` and ``estimate_only`` as `run_stages`. ``early`` makes weights of the last checkpoint when the time is
    over. ``again`` trains anew, from step 0.
    """
    weights = weights or results.writable(committed=True) / "vqa-weights" / "vqa.safetensors"
    if again and not estimate_only:
        checkpoint_path(recipe).unlink(missing_ok=True)
    stage = Stage(weights.name, lambda: weights.is_file() and sheet_path(weights).is_file(),
                  functools.partial(_train, recipe, weights, count, log), recipe.total)
    steps_left = run_stages("vqa-weights", [stage], minutes=minutes, again=again, estimate_only=estimate_only)
    if steps_left and early and not estimate_only:
        finish(resume(recipe, settings.device()), recipe, weights, count, log)
        checkpoint_path(recipe).unlink(missing_ok=True)
        return 0
    return steps_left


def _train(recipe: LlavaRecipe, weights: Path, count: int, log: Path | None, budget: Budget) -> int:
    """The one stage, which has a checkpoint: returns how many steps are left."""
    state = train(recipe, budget, log)
    if steps_left := recipe.total - state.step:
        return steps_left
    finish(state, recipe, weights, count, log)
    checkpoint_path(recipe).unlink(missing_ok=True)
    return 0
