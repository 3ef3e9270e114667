"""Laws of a patched model outside plain eager code: traced, exported, in onnxruntime, compiled, under vmap."""

from __future__ import annotations

import copy
import math
import re
import sys
from pathlib import Path

import pytest
import torch

import pitome_core as pc
import pitome_core.experiments.baselines
from pitome_core import energy, merge_plan, portable

pytest.importorskip("timm")
pytest.importorskip("transformers")
pytest.importorskip("open_clip")
ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import supported_models  # noqa: E402
from model_uses import OneTower, batch, one_tower  # noqa: E402

# Tracing warns of every number that it keeps, and vmap of operators that it runs one by one.
pytestmark = pytest.mark.filterwarnings("ignore")
VISION = [e for e in supported_models.ENTRIES if e.towers == "vision" and "text of" not in e.note]
LIBRARIES = ["deit_tiny_patch16_224", "vit_small_patch16_dinov3", "beit_base_patch16_224", "CLIP",
             "CLIPVisionModelWithProjection", "SiglipVisionModel", "ViTModel", "Dinov2Model"]
ONE_EACH = [next(entry for entry in VISION if entry.name == name) for name in LIBRARIES]
BATCH = ({0: torch.export.Dim("batch")},)


def build(entry, method="pitome", keep=0.7, plans=False, **options):
    """(model, images) -> the tower of an entry that takes images alone, merging, and two of them."""
    tower, images = one_tower(*entry.build(), "vision")
    return OneTower(pc.apply(tower, method, keep=keep, **options), plans).eval(), images


def deep_vit(depth=12):
    import timm

    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=64, embed_dim=48, num_heads=3, depth=depth).eval()


def is_right_for_any_batch(function, model, images, tolerance=1e-5):
    """The function gives what the model gives, for one image and for four."""
    for number in (1, 4):
        given = batch(images, number)
        with torch.no_grad():
            expected, got = model(given), function(given)
        expected, got = supported_models.tensors(expected), supported_models.tensors(got)
        assert len(expected) == len(got) > 0
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def trace(model, images):
    """Traced on one image."""
    with torch.no_grad():
        return torch.jit.trace(model, (batch(images, 1),), check_trace=False)


def export(model, images, strict=False):
    with torch.no_grad():
        return torch.export.export(model, (batch(images, 2),), dynamic_shapes=BATCH, strict=strict)


@pytest.mark.parametrize("library", ["timm", "open_clip", "transformers", "own_model"])
def test_twelve_layers_are_traced(library, monkeypatch):
    """Counts of tokens are plain numbers: twelve layers of them, each from the one before."""
    if library == "timm":
        model = deep_vit()
    elif library == "open_clip":
        from open_clip.transformer import VisionTransformer

        torch.manual_seed(0)
        model = VisionTransformer(64, 16, 48, 12, 3, 4.0, output_dim=24).eval()
    elif library == "transformers":
        import transformers

        sizes = {**supported_models.VISION, "num_hidden_layers": 12, "image_size": 64, "patch_size": 16}
        model = supported_models.randomized(transformers.ViTModel(transformers.ViTConfig(**sizes)))
    else:
        from pitome_core.families import registry

        monkeypatch.setattr(registry, "_REGISTERED", [])
        names: dict = {}
        exec("\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "book/own_model.md").read_text(), flags=re.S)), names)
        model = names["MyViT"](depth=12).eval()
    images = supported_models.pictures(64)
    for method in ("pitome", "tome"):
        whole = OneTower(pc.apply(model, method, keep=0.9))
        is_right_for_any_batch(trace(whole, images), whole, images)


def test_counters_that_trace_run_on_twelve_layers():
    """fvcore traces; it counts what `flops` counts, so every layer had its own number of tokens."""
    fvcore = pytest.importorskip("fvcore.nn")
    model = pc.apply(deep_vit(), keep=0.9)
    for block in model.blocks:
        block.attn.fused_attn = False
    analysis = fvcore.FlopCountAnalysis(model, supported_models.pictures(64)[:1])
    analysis.unsupported_ops_warnings(False)
    products = sum(analysis.by_operator()[name] for name in ("linear", "matmul", "conv"))
    assert products == pytest.approx(pc.flops(model, (3, 64, 64)).total, rel=0.03)


@pytest.mark.parametrize("entry", ONE_EACH, ids=lambda entry: entry.name)
def test_a_trace_is_right_for_any_batch(entry):
    """With ToMe. PiToMe, and the other uses in graphs, are run on every row by the table of supported models."""
    model, images = build(entry, "tome")
    is_right_for_any_batch(trace(model, images), model, images)


def test_a_trace_refuses_other_numbers_of_tokens():
    """Its counts are those of the example, so another size of image fails and is not merged wrongly."""
    import timm

    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=48, num_heads=3,
                              dynamic_img_size=True).eval()
    traced = trace(pc.apply(model, keep=0.7, restore=False), supported_models.pictures(64))
    with pytest.raises(RuntimeError):
        traced(supported_models.pictures(80))


@pytest.mark.parametrize("entry", [entry for entry in ONE_EACH if entry.name in LIBRARIES[::3]], ids=lambda e: e.name)
def test_a_strictly_exported_program_is_right_for_any_batch(entry):
    model, images = build(entry)
    is_right_for_any_batch(export(model, images, strict=True).module(), model, images)


@pytest.mark.parametrize(("method", "options"), [
    ("tome", {}), ("tome", {"restore": False, "metric": "hidden"}), ("tofu", {}),
    ("pitome", {"kernel": "elu", "insertion": "before"}),
    ("pitome", {"kernel": "gaussian", "protection": False, "edges": "best", "split": "random"}),
])
def test_onnxruntime_computes_variants(method, options, tmp_path):
    runs_in_onnxruntime(*build(VISION[0], method, plans=True, **options), tmp_path)


def runs_in_onnxruntime(model, images, folder):
    import onnxruntime

    with torch.no_grad():
        program = torch.onnx.export(model, (batch(images, 2),), dynamic_shapes=BATCH, dynamo=True, verbose=False)
    program.save(folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    for number in (1, 4):
        given = batch(images, number)
        with torch.no_grad():
            *expected, assignment = model(given)
        *got, slots = (torch.from_numpy(value) for value in session.run(None, {name: given.numpy()}))
        assert torch.equal(slots, assignment) and slots.max() < slots.shape[1] - 1
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", sorted(set(pc.methods()) - {"atc", "grid_pool"}))
def test_every_method_is_traced_and_exported(method):
    """Right for any batch, and without the operators that ONNX lacks."""
    model, images = build(VISION[0], method)
    is_right_for_any_batch(trace(model, images), model, images)
    program = export(model, images)
    is_right_for_any_batch(program.module(), model, images)
    operators = {str(node.target) for node in program.graph.nodes}
    assert not {name for name in operators if "searchsorted" in name or "sort.stable" in name}


def test_energies_in_blocks_are_traced(monkeypatch):
    """Beyond a number of tokens the cosines are computed in blocks of rows, whose number is a plain one, too."""
    monkeypatch.setitem(energy._ENTRIES_AT_ONCE, "cpu", 40)
    model, images = build(VISION[0])
    traced = trace(model, images)
    assert str(traced.inlined_graph).count("aten::bmm") > 6
    is_right_for_any_batch(traced, model, images)
    is_right_for_any_batch(export(model, images).module(), model, images)


def test_grid_pooling_is_traced():
    model, images = build(VISION[0], "grid_pool", keep=[0.25, 1.0, 1.0])
    is_right_for_any_batch(trace(model, images), model, images)


@pytest.mark.parametrize("run", [trace, export])
def test_what_depends_on_values_refuses(run):
    """A text's counts depend on its length, clusters of atc on scikit-learn: a graph would keep the example's."""
    model, images = build(VISION[0], "atc")
    with pytest.raises(ValueError, match=r"(?s)keep the plan of its example.*pc\.remove"):
        run(model, images)
    entry = next(entry for entry in supported_models.ENTRIES if entry.name == "BertModel")
    model, given = entry.build()
    with pytest.raises(ValueError, match="depends on the length of every text"):
        run(OneTower(pc.apply(model, keep=0.7)), given["input_ids"])
    with pytest.raises(Exception, match="depends on the length of every text"):  # exporters wrap it in errors of theirs
        torch.export.export(model, (), kwargs=given, strict=False)


@pytest.fixture
def exporting(monkeypatch):
    """exporting() makes what follows use the forms for exported graphs."""

    def switch():
        monkeypatch.setattr(portable, "exporting", lambda: True)
        monkeypatch.setattr(merge_plan, "exporting", lambda: True)

    return switch


@pytest.mark.parametrize("descending", [True, False])
def test_the_counted_order_is_the_stable_sort(exporting, descending):
    generator = torch.Generator().manual_seed(0)
    cases = [torch.randint(0, 4, (3, 17), generator=generator), torch.randn(2, 9, generator=generator),
             torch.tensor([[0.0, -math.inf, 0.0, math.inf, -math.inf, -0.0]]), torch.zeros(2, 1), torch.zeros(0, 3)]
    expected = [case.argsort(dim=-1, descending=descending, stable=True) for case in cases]
    exporting()
    for case, order in zip(cases, expected, strict=True):
        assert torch.equal(portable.stable_order(case, descending), order)


@pytest.mark.parametrize("method", ["pitome", "tome"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 24])
def test_plans_and_merges_for_graphs_are_the_eager_ones(exporting, method, tokens):
    """The same plan to the bit, ties and broken tokens included; the same means up to rounding."""
    generator = torch.Generator().manual_seed(tokens)
    metric = torch.randint(-1, 2, (3, tokens, 4), generator=generator).float()  # many equal tokens, some zero
    broken = metric.clone()
    broken[1, 0] = math.nan
    x = torch.randn(3, 2 + tokens, 5, generator=generator)
    size = torch.randint(0, 3, (3, 2 + tokens), generator=generator).float()
    function, k = pc.methods()[method].function, tokens // 3
    eager = [function(value, k) for value in (metric, broken)]
    cases = [(x, size), (x, None), (x.half(), size), (x.double(), size)]
    expected = [[plan.merge(*case, prefix=2) for case in cases] for plan in eager]
    exporting()
    for value, plan, results in zip((metric, broken), eager, expected, strict=True):
        again = function(value, k)
        assert torch.equal(again.assignment, plan.assignment) and torch.equal(again.anchor, plan.anchor)
        for case, (merged, sizes) in zip(cases, results, strict=True):
            got, total = again.merge(*case, prefix=2)
            assert got.dtype == merged.dtype and torch.equal(total, sizes)
            torch.testing.assert_close(got, merged)


@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_dynamic_shapes_compile_once(method):
    """Batches of 2, 3 and 5 share a graph, which has no count of tokens that depends on a symbol."""
    model = pc.apply(deep_vit(depth=6), method, keep=0.8)
    compiled = dynamic(model)
    images = supported_models.pictures(64)
    for number in (2, 3, 5):
        with torch.no_grad():
            given = batch(images, number)
            torch.testing.assert_close(compiled(given), model(given), rtol=1e-5, atol=1e-5)
    assert len(compiled.graphs) == 1
    code = compiled.graphs[0].code
    assert not re.search(r"floor|sym_max|sym_min|nextafter|math_", code)


def test_dynamic_shapes_follow_the_patch():
    """Ratios and margins are fixed in the code that was compiled for them, and other ones get their own."""
    images = supported_models.pictures(64)
    model = deep_vit(depth=2)
    compiled = dynamic(model)
    for options in ({"keep": 0.8}, {"keep": 0.6}, {"keep": 0.6, "margin": -0.5},
                    {"keep": pc.schedule(model, remove=5, input_size=(3, 64, 64))}, {"keep": 0.8}):
        pc.apply(model, **options)
        with torch.no_grad():
            torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-5)


def dynamic(model):
    """The model compiled with dynamic shapes; `graphs` collects what the compiler was given."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, dynamic=True, fullgraph=True, backend=backend)

    def run(images):
        return compiled(images)

    run.graphs = graphs
    return run


@pytest.mark.parametrize("method", ["pitome", "tome"])
@pytest.mark.parametrize("entry", ONE_EACH, ids=lambda entry: entry.name)
def test_vmap(entry, method):
    """One more dimension in front, over images and over groups of images."""
    model, images = build(entry, method)
    with torch.no_grad():
        mapped = torch.func.vmap(model)(batch(images, 6).unflatten(0, (3, 2)))
        for a, b in zip(mapped, model(batch(images, 6)), strict=True):
            torch.testing.assert_close(a.flatten(0, 1), b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["pitome", "tome"])
@pytest.mark.parametrize("entry", ONE_EACH, ids=lambda entry: entry.name)
def test_meta_device(entry, method):
    """Shapes without values."""
    model, images = build(entry, method)
    shapes = [value.shape for value in model(images)]
    outputs = copy.deepcopy(model).to("meta")(images.to("meta"))
    assert [value.shape for value in outputs] == shapes and all(value.is_meta for value in outputs)


@pytest.mark.parametrize("method", ["pitome", "tome"])
@pytest.mark.parametrize("entry", ONE_EACH, ids=lambda entry: entry.name)
def test_no_images(entry, method):
    """No images in, no outputs out, wherever the model itself can do that."""
    model, images = build(entry, method)
    shapes = [value.shape[1:] for value in model(images)]
    try:
        pc.remove(model.model)(images[:0])
    except RuntimeError:
        pytest.skip("the model itself refuses a batch of 0")
    pc.apply(model.model, method, keep=0.7)
    assert [value.shape for value in model(images[:0])] == [(0, *shape) for shape in shapes]


def test_the_page_on_export_runs(tmp_path, monkeypatch):
    """Its code is executed; it compares what it exports with the model itself."""
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "book" / "export.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    names: dict = {}
    exec(compile("\n".join(blocks), "export.md", "exec"), names)
    assert len(blocks) >= 3 and (tmp_path / "merged.onnx").exists()
    assert names["same"]
