"""Low-rank updates of linear maps (LoRA; Hu et al., ICLR 2022), trained with `peft`.

An update changes the weight ``W (out, in)`` of a linear map to ``W + SCALE * up @ down``. Only ``up (out, rank)`` and
``down (rank, in)`` are trained; `peft` calls them ``lora_B`` and ``lora_A``. Stored updates are named after the map:
``NAME.up`` and ``NAME.down``. These names stay because shipped weights have them, and records hold the hash of these
files. A model that runs has its updates added to its weights (`merge`), so merging them needs no `peft`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

RANK, SCALE = 8, 2.0
ADAPTER = "default"  # peft's name for the one update that a map has here


def adapt(model: nn.Module, targets: Iterable[str], seed: int, rank: int = RANK) -> list[nn.Parameter]:
    """Freeze a model and give the linear maps ``targets``, named as in the model, an update each.

    Returns the new parameters. ``up`` starts at 0, so that training starts at the model as it is; ``down`` starts at
    random numbers of variance ``1 / in`` that follow from ``seed``. Raises ``ValueError`` if the model has updates
    already.
    """
    from peft import LoraConfig, inject_adapter_in_model

    if adapted := _adapted(model):
        raise ValueError(f"{next(iter(adapted))} has an update already")
    names = list(targets)
    model.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=round(SCALE * rank), lora_dropout=0.0, target_modules=names)
    with torch.random.fork_rng(devices=[]):  # peft draws a `down` of its own, which is replaced below
        inject_adapter_in_model(config, model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in names:
            down = model.get_submodule(name).lora_A[ADAPTER].weight
            down.copy_(torch.randn(down.shape, generator=generator) * down.shape[1] ** -0.5)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def updates(model: nn.Module) -> dict[str, Tensor]:
    """``up`` and ``down`` of every adapted map, by the names they are stored under.

    The tensors are those of the model, not copies, without gradients.
    """
    stored = {}
    for name, layer in _adapted(model).items():
        stored[f"{name}.up"] = layer.lora_B[ADAPTER].weight.detach()
        stored[f"{name}.down"] = layer.lora_A[ADAPTER].weight.detach()
    return stored


@torch.no_grad()
def merge(model: nn.Module, targets: Iterable[str], stored: Mapping[str, Tensor]) -> None:
    """Add stored updates of the linear maps ``targets`` to the weights of a model that has no updates.

    Raises ``ValueError`` if the names are those of other maps.
    """
    names = list(targets)
    expected = {f"{name}.{part}" for name in names for part in ("up", "down")}
    if unmatched := sorted(expected ^ set(stored)):
        raise ValueError(
            f"{len(stored)} matrices of updates, the model has room for {len(expected)}; the first that does not "
            f"match: {unmatched[0]}"
        )
    for name in names:
        weight = model.get_submodule(name).weight
        up, down = (stored[f"{name}.{part}"].to(weight) for part in ("up", "down"))
        weight += SCALE * (up @ down)


def _adapted(model: nn.Module) -> dict[str, nn.Module]:
    """The maps that have an update, by name."""
    from peft.tuners.lora import LoraLayer

    return {name: part for name, part in model.named_modules() if isinstance(part, LoraLayer)}
