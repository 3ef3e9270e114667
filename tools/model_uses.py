"""Where users put a merged model, as checks on any row of the table of supported models (`supported_models.py`).

A check returns True, or False, or one word for a use that is refused for this row on purpose.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, nn

import pitome_core as pc
from pitome_core.families import find_family

REFUSED = "refused"


def tensors(value) -> list[Tensor]:
    """All floating tensors inside an output, in order."""
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = list(value.values())
    return [part for entry in value for part in tensors(entry)] if isinstance(value, (list, tuple)) else []


class OneTower(nn.Module):
    """The tower of a model that merges, from one tensor to a tuple of tensors; with `plans`, its plan as well."""

    def __init__(self, model: nn.Module, plans: bool = False):
        super().__init__()
        self.model, self.plans = model, plans
        self.program: torch.export.ExportedProgram | None = None

    def forward(self, given: Tensor) -> tuple[Tensor, ...]:
        if not self.plans:
            return tuple(tensors(self.model(given)))
        with pc.record(self.model) as trace:
            outputs = tensors(self.model(given))
        return *outputs, trace.assignment


def one_tower(model: nn.Module, given: dict[str, Tensor], towers: str) -> tuple[nn.Module, Tensor]:
    """The tower that an entry of the table is about, and its input: two images, or two texts of unequal lengths."""
    if towers != "vision":
        return model.text.transformer, given["text"]
    if "pixel_values" not in given and "input_ids" in given:
        return model, given["input_ids"]
    images = next(given[name] for name in ("x", "image", "pixel_values") if name in given)
    return model.visual if "image" in given else model.vision_model if "input_ids" in given else model, images


def batch(given: Tensor, number: int) -> Tensor:
    """So many inputs that differ."""
    if not given.is_floating_point():
        return torch.stack([given[i % 2] for i in range(number)])
    return torch.stack([given[i % 2].roll(5 * i, dims=-1) * (1 + 0.1 * i) for i in range(number)])


def equal(got, expected, tolerance: float) -> bool:
    got, expected = tensors(got), tensors(expected)
    close = [torch.allclose(a, b, rtol=tolerance, atol=tolerance) for a, b in zip(got, expected, strict=True)]
    return bool(close) and all(close)


def for_any_batch(function: Callable, model: nn.Module, given: Tensor) -> bool:
    """Whether the function gives what the model gives, for one input and for four."""
    return all(equal(function(batch(given, number)), model(batch(given, number)), 1e-5) for number in (1, 4))


def is_traced(model: OneTower, given: Tensor) -> bool:
    return for_any_batch(torch.jit.trace(model, (batch(given, 1),), check_trace=False), model, given)


def exported(model: OneTower, given: Tensor) -> torch.export.ExportedProgram:
    """The program of any batch, made once for a tower: it takes seconds, and ONNX is made from it too."""
    if model.program is None:
        shapes = ({0: torch.export.Dim("batch")},)
        model.program = torch.export.export(model, (batch(given, 2),), dynamic_shapes=shapes, strict=False)
    return model.program


def is_exported(model: OneTower, given: Tensor) -> bool:
    return for_any_batch(exported(model, given).module(), model, given)


def runs_in_onnxruntime(model: OneTower, given: Tensor) -> bool:
    """Outputs equal to 1e-4, and plans equal, for one input and for four."""
    import onnxruntime

    # Not optimized, which takes a third of the time and changes no result; a recipe in the book does it as users do.
    program = torch.onnx.export(exported(model, given), dynamo=True, verbose=False, optimize=False)
    quiet = onnxruntime.SessionOptions()
    quiet.log_severity_level = 3  # it warns of every cast that an optimizer would have taken out
    with TemporaryDirectory() as folder:
        program.save(Path(folder) / "model.onnx")
        session = onnxruntime.InferenceSession(Path(folder) / "model.onnx", quiet, providers=["CPUExecutionProvider"])
    results = []
    for number in (1, 4):
        *expected, plan = model(batch(given, number))
        feed = {session.get_inputs()[0].name: batch(given, number).numpy()}
        *got, slots = (torch.from_numpy(value) for value in session.run(None, feed))
        results.append(equal(got, expected, 1e-4) and torch.equal(slots, plan))
    return all(results)


def compiles_once(model: OneTower, given: Tensor) -> bool:
    """With dynamic shapes, for batches of 2, 3 and 5. A model of texts may break into several graphs."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    ragged = find_family(model.model).ragged
    compiled = torch.compile(model, dynamic=True, fullgraph=not ragged, backend=backend)
    right = all(equal(compiled(batch(given, number)), model(batch(given, number)), 1e-5) for number in (2, 3, 5))
    return right and (ragged or len(graphs) == 1)


def adapters_learn(model: nn.Module, given: Tensor) -> bool:
    """Low-rank updates have the gradients that they have without merging, put on before `apply` or after it, and both
    orders give the same outputs."""
    import peft

    def adapted(model: nn.Module, order: str) -> tuple[list[Tensor], set[str]]:
        model = copy.deepcopy(model)
        blocks = {id(part) for module, name, _ in find_family(model).entry_points(model) for part in module.modules()
                  if name == "forward" and module is not model}
        maps = (nn.Linear, nn.MultiheadAttention)
        inside = [name for name, part in model.named_modules() if id(part) in blocks and isinstance(part, maps)
                  and type(part) is not nn.modules.linear.NonDynamicallyQuantizableLinear]
        torch.manual_seed(0)
        config = peft.LoraConfig(r=2, target_modules=inside, init_lora_weights=False)
        if order == "merged first":
            pc.apply(model, keep=0.7)
        wrapped = peft.get_peft_model(model, config)
        if order == "adapted first":
            pc.apply(wrapped.get_base_model(), keep=0.7)
        with torch.enable_grad():
            outputs = tensors(wrapped.get_base_model()(given))
            sum(part.square().mean() for part in outputs).backward()
        updates = {n for n, p in wrapped.named_parameters() if "lora_" in n and p.grad is not None and p.grad.any()}
        return [part.detach() for part in outputs], updates

    (_, learning), (first, one), (second, other) = (adapted(model, o) for o in ("", "merged first", "adapted first"))
    return bool(learning) and learning == one == other and equal(first, second, 1e-5)


def replicas_are_their_own(model: nn.Module, given: Tensor) -> bool:
    """A replica as `nn.DataParallel` makes it gives what the model gives; with other weights, what those give."""
    replica, zeroed = replicate(model), copy.deepcopy(model)
    right = equal(replica(given), model(given), 1e-6)
    for part in zeroed.parameters():
        part.mul_(0.5)
    for module in replica.modules():
        for name, value in module._parameters.items():
            module._parameters[name] = None if value is None else 0.5 * value
    return right and equal(replica(given), zeroed(given), 1e-5) and not equal(replica(given), model(given), 1e-5)


def replicate(model: nn.Module) -> nn.Module:
    """A replica by the modules' own method, linked together."""
    replicas = {id(module): module._replicate_for_data_parallel() for module in model.modules()}
    for module in model.modules():
        replica = replicas[id(module)]
        for name, child in module._modules.items():
            replica._modules[name] = None if child is None else replicas[id(child)]
        for name, value in module._parameters.items():
            replica._parameters[name] = None if value is None else value.detach().clone()
    return replicas[id(model)]


def lies_on_two_devices(model: nn.Module, given: Tensor) -> bool | str:
    """Everything behind the second block on a second device, as accelerate's device maps do. It is `meta` here, which
    has shapes and no values; so texts, whose lengths are values, are left out."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    if find_family(model).ragged:
        return "not run"
    expected, split = [part.shape for part in tensors(model(given))], pc.remove(copy.deepcopy(model))
    order: list[nn.Module] = []
    handles = [part.register_forward_pre_hook(lambda part, _: order.append(part)) for part in split.modules()]
    split(given)
    for handle in handles:
        handle.remove()
    container = next(part for part in split.modules() if isinstance(part, (nn.ModuleList, nn.Sequential))
                     and len(part) == 3 and len({type(block) for block in part}) == 1 and part[0] in order)
    for part in order[order.index(container[2]) :]:
        part.to("meta")
        for module in part.modules():
            add_hook_to_module(module, AlignDevicesHook("meta"))
    outputs = tensors(pc.apply(split, keep=0.7)(given))
    return [part.shape for part in outputs] == expected and all(part.is_meta for part in outputs)


IN_GRAPHS = {"trace": is_traced, "export": is_exported, "ONNX": runs_in_onnxruntime, "compile": compiles_once}
IN_WRAPPERS = {"LoRA": adapters_learn, "replica": replicas_are_their_own, "device map": lies_on_two_devices}
COLUMNS = (*IN_GRAPHS, *IN_WRAPPERS)


def check_uses(model: nn.Module, given: dict[str, Tensor], towers: str) -> dict[str, bool | str]:
    """Every use, for the tower of one row."""
    tower, value = one_tower(model, given, towers)
    row: dict[str, bool | str] = {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every number that it keeps
        row["LoRA"] = adapters_learn(tower, value)
        pc.apply(tower, keep=0.7)
        outputs, planned = OneTower(tower).eval(), OneTower(tower, plans=True).eval()
        for name, use in IN_GRAPHS.items():
            try:
                row[name] = use(planned if name in ("export", "ONNX") else outputs, value)
            except Exception as error:  # exporters wrap what a model raises in errors of their own
                if "keep the plan of its example" not in str(error):
                    raise
                row[name] = REFUSED
        for name in ("replica", "device map"):
            row[name] = IN_WRAPPERS[name](tower, value)
    return row
