"""Interactive figures: their scripts, run by node, compute what pitome_core computes; their data are the model's."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import pitome_core as pc
from pitome_core.energy import cosine_graph
from pitome_core.experiments import plots, quality
from pitome_core.experiments.data.clusters import ORDERS, clusters, wrong_merges
from pitome_core.experiments.data.pictures import preprocess
from pitome_core.experiments.plots import live
from pitome_core.experiments.runs import timings
from pitome_core.spectral import coarsen, inside_shares, lift, spectrum, token_graph

ROOT = Path(__file__).resolve().parents[3]
SCRIPTS = ROOT / "book" / "_static" / "live"
PAGE = 250_000  # most bytes of one figure


def draws(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def in_node(expression: str, given: object, script: str = "methods.js") -> object:
    """The value of a JavaScript expression of `m` (what the script exports) and `given`."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("node is not installed: what the figures compute cannot be compared")
    program = (
        f"const m = require({json.dumps(str(SCRIPTS / script))});"
        "const given = JSON.parse(require('fs').readFileSync(0));"
        f"console.log(JSON.stringify({expression}));"
    )
    done = subprocess.run([node, "-e", program], input=json.dumps(given), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)[1])


CASES = [(seed, 3 + seed % 18, 2 + seed % 7, (0.9, 0.5, 0.1, 0.0)[seed % 4]) for seed in range(60)]


@pytest.mark.parametrize("method", ["pitome", "tome"])
def test_plans_are_those_of_the_package(method):
    given, expected = [], []
    for seed, count, channels, margin in CASES:
        tokens = draws(seed, count, channels) + seed % 3  # from centred to nearly parallel
        remove = 1 + seed % (count // 2)
        options = {"margin": margin} if method == "pitome" else {}
        given.append({"tokens": tokens.tolist(), "remove": remove, "margin": margin})
        expected.append(pc.plan(tokens[None], remove, method, **options).assignment[0].tolist())
    found = in_node(
        "given.map(g => { const c = m.cosines(g.tokens),"
        f" p = m.{method}(c, g.remove, g.margin); return m.assignment(g.tokens.length, p.a, p.partner); }})", given,
    )  # fmt: skip
    assert found == expected


def test_every_order_of_the_sixteen_squares_has_the_plan_of_the_package():
    colours = draws(3, 16, 3).sigmoid()
    data = plots.one_merge(colours, 4, 0.9).data
    orders = [torch.randperm(16, generator=torch.Generator().manual_seed(s)).tolist() for s in range(40)]
    keys = torch.tensor(data["keys"], dtype=torch.float64)
    for method, options in (("pitome", {"margin": 0.9}), ("tome", {})):
        found = in_node(
            f"given.orders.map(o => {{ const p = m.{method}(m.cosines(o.map(i => given.keys[i])), 4, 0.9);"
            " return m.assignment(16, p.a, p.partner); })", {"orders": orders, "keys": data["keys"]},
        )  # fmt: skip
        assert found == pc.plan(keys[torch.tensor(orders)], 4, method, **options).assignment.tolist()


def test_equal_tokens_keep_their_order():
    tokens = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0]], dtype=torch.float64)
    for method in ("pitome", "tome"):
        found = in_node(
            f"(p => m.assignment(6, p.a, p.partner))(m.{method}(m.cosines(given), 2, 0.9))", tokens.tolist()
        )
        assert found == pc.plan(tokens[None], 2, method).assignment[0].tolist()


def test_energies_are_those_of_the_package():
    for margin in (0.0, 0.375, 0.9):
        tokens = draws(5, 30, 8) + 0.5
        given = {"tokens": tokens.tolist(), "margin": margin}
        found = in_node("m.energies(m.cosines(given.tokens), given.margin)", given)
        assert np.allclose(found, pc.energy_score(tokens[None], margin)[0], atol=1e-12)


def test_stored_keys_are_near_the_keys():
    """The page says "a few thousandths": of cosines, and of energies as far as no cosine crosses the margin."""
    keys = draws(1, 256, 64) + 1
    stored = torch.from_numpy(live.directions(keys)).double()
    exact, rounded = cosine_graph(keys[None])[0], cosine_graph(stored[None])[0]
    error = float((exact - rounded).abs().max())
    assert error < 0.01
    margin = float(exact.median())
    near = ((exact - margin).abs() <= error).double().mean(dim=1)  # pairs that may be on the other side of the margin
    difference = (pc.energy_score(keys[None], margin)[0] - pc.energy_score(stored[None], margin)[0]).abs()
    assert (difference <= error + near).all()
    assert np.array_equal(stored.numpy(), live.directions(3 * keys)), "a key's length is in no cosine"


def test_spectra_are_those_of_the_package():
    given, expected = [], []
    for seed in range(40):
        tokens, groups = draws(seed, 6, 2), [0, 1, 2, seed % 3, seed // 3 % 3, seed // 9 % 3]
        if seed % 2:
            groups = groups[:5] + [3]
        plan = pc.MergePlan.from_roots(torch.tensor([[groups.index(g) for g in groups]]))
        graph = token_graph(tokens[None])
        given.append({"tokens": tokens.tolist(), "groups": groups})
        expected.append([
            spectrum(graph)[0].tolist(), spectrum(lift(coarsen(graph, plan), plan))[0].tolist(),
            inside_shares(graph, plan)[0].tolist(), pc.spectral_distance(tokens[None], plan).item(),
        ])  # fmt: skip
    found = in_node("given.map(g => m.spectral(m.tokenGraph(g.tokens), g.groups))", given)
    for one, (before, after, shares, distance) in zip(found, expected, strict=True):
        assert np.allclose(one["before"], before, atol=1e-8) and np.allclose(one["after"], after, atol=1e-8)
        assert np.allclose(one["shares"], shares, atol=1e-9) and abs(one["distance"] - distance) < 1e-7


SETTINGS = [
    (sizes, cosine, noise, order) for order in range(3) for sizes, cosine, noise in ((0, 0, 0), (1, 1, 1), (2, 2, 1))
]


def test_clusters_are_merged_as_the_package_merges_them():
    """In every draw of several settings: tokens, wrong merges and distances; and the tokens are those of `clusters`."""
    parts, cosines, noises = [(6, 6, 6, 6), (8, 7, 5, 4), (12, 7, 3, 2)], [0.9, 0.5, 0.0], [0.5, 0.1]
    data = plots.cluster_figure(parts, cosines, noises, remove=6, margin=0.5, draws=8, width=8).data
    settings = [[parts[s], cosines[c], noises[n], ORDERS[o]] for s, c, n, o in SETTINGS]
    found = in_node(
        "given.settings.map(of => given.draws.map(d => {"
        " const { tokens, labels } = m.clustered(d.unit, ...of, d.places), c = m.cosines(tokens);"
        " return [tokens, labels, ...[m.pitome(c, 6, 0.5), m.tome(c, 6)].flatMap(p => {"
        " const groups = m.assignment(24, p.a, p.partner), shares = m.shares(m.tokenGraph(tokens), groups);"
        " return [groups, p.a.filter((i, n) => labels[i] !== labels[p.partner[n]]).length,"
        " shares.reduce((a, b) => a + b, 0)]; })]; }))",
        {"settings": settings, "draws": data["draws"]},
    )  # fmt: skip
    wrong_somewhere = 0
    for (sizes, cosine, noise, order), of in zip(settings, found, strict=True):
        tokens, labels = live.clustered(data["draws"], sizes, cosine, noise, order)
        drawn = [torch.tensor([draw[i] for draw in of], dtype=torch.float64) for i in range(2)]
        assert torch.allclose(drawn[0], tokens, atol=1e-12) and torch.equal(drawn[1].long(), labels)
        if order != "shuffled":
            axes = torch.eye(8, dtype=torch.float64)
            centres = cosine**0.5 * axes[4] + (1 - cosine) ** 0.5 * axes[:4]
            exact, same = clusters(sizes, noise, 8, order=order, centres=centres)
            assert torch.equal(same, labels) and (exact - tokens).abs().max() <= 0.005 * noise + 1e-12
        for first, (method, options) in ((2, ("pitome", {"margin": 0.5})), (5, ("tome", {}))):
            plan = pc.plan(tokens, 6, method, **options)
            assert [draw[first] for draw in of] == plan.assignment.tolist()
            assert [draw[first + 1] for draw in of] == wrong_merges(plan, labels).tolist()
            assert np.allclose([draw[first + 2] for draw in of], pc.spectral_distance(tokens, plan), atol=1e-6)
            wrong_somewhere += int(wrong_merges(plan, labels).sum())
    assert wrong_somewhere > 0


def test_the_token_map_replays_what_was_recorded(build_vit, images):
    model = build_vit(img_size=224)
    photographs = {"one": np.asarray(255 * images(1, 224)[0].sigmoid().movedim(0, -1)).astype(np.uint8)}
    data = live.token_maps(model, photographs, {"keep": 0, "layer": 0})
    batch = preprocess(list(photographs.values())).double()
    assert model.pos_embed.dtype == torch.float64  # near-ties are then the same on every processor
    for arm, (_, _, method, options) in enumerate(live.ARMS):
        for k, keep in enumerate(live.KEEP):
            with pc.patched(model, method, keep, **options), pc.record(model) as trace, torch.no_grad():
                model.forward_features(batch)
                counts = pc.flops(model)
            tokens = data["tokens"][k]
            assert [n + 1 for n in tokens] == list(counts.tokens) and data["macs"][arm][k][-1] == counts.total
            spent = counts.embed + sum(layer.total for layer in counts.layers[:2])
            assert data["macs"][arm][k][2] == spent and len(data["macs"][arm][k]) == len(tokens)
            every = np.frombuffer(base64.b64decode(data["pictures"][0]["plans"][arm][k]), np.uint8)
            layers = [part.tolist() for part in np.split(every, np.cumsum(tokens[:-1])[:-1])]
            for done in range(len(tokens)):
                found = in_node(f"m.compose(given, 196, {done})", layers)
                assert found == trace.last.plan(done).assignment[0].tolist()


def test_the_file_of_the_front_page_is_what_its_tool_writes():
    """Plans and counts to the last digit; colours but for the rounding of another decoder of pictures."""
    pytest.importorskip("timm")
    tool = importlib.util.spec_from_file_location("draw_live", ROOT / "tools" / "draw_live.py")
    draw_live = importlib.util.module_from_spec(tool)
    tool.loader.exec_module(draw_live)
    text = draw_live.TARGET.read_text()
    stored, again = data_of(text), draw_live.data()
    pictures = [(old, new) for old, new in zip(stored.pop("pictures"), again.pop("pictures"), strict=True)]
    assert stored == json.loads(json.dumps(again))
    for old, new in pictures:
        assert old["name"] == new["name"] and old["plans"] == new["plans"], f"python tools/draw_live.py: {old['name']}"
        means = [np.frombuffer(base64.b64decode(of["means"]), np.uint8).astype(int) for of in (old, new)]
        photographs = [np.asarray(Image.open(io.BytesIO(base64.b64decode(of["photo"].split(",")[1]))), float)
                       for of in (old, new)]  # fmt: skip
        assert np.abs(means[0] - means[1]).max() <= 1 and np.abs(photographs[0] - photographs[1]).mean() < 2
    assert len(text) < PAGE and 'alt="' in text
    for picture in pictures:  # what the front page says of the maps as they start
        alone, largest = zip(*(sizes_at_start(stored, plans) for plans in picture[0]["plans"][:2]), strict=True)
        assert alone[0] > alone[1] and largest[0] > largest[1], picture[0]["name"]


def sizes_at_start(data: dict, plans: list[str]) -> tuple[int, int]:
    """How many patches are alone, and how many the largest token holds, where the sliders of the token map start."""
    keep, layer = data["start"]["keep"], data["start"]["layer"]
    every, tokens = np.frombuffer(base64.b64decode(plans[keep]), np.uint8), data["tokens"][keep]
    layers = np.split(every, np.cumsum(tokens[:-1])[:-1])
    at = np.arange(tokens[0])
    for plan in layers[:layer]:
        at = plan[at]
    sizes = np.bincount(at)
    return int((sizes == 1).sum()), int(sizes.max())


ROW = {"task": "digits", "group": "ours", "label": "PiToMe", "rival": "tome", "detectable": 0.02}
FOREST = {
    "tasks": [{"name": "digits", "asked": "read a digit", "unit": "accuracy", "digits": 3, "keep": 0.9, "whole": 0.8}],
    "groups": ["ours", "theirs"], "rivals": {"tome": "ToMe", "whole": "the whole model"},
    "rows": [ROW | {"mean": -0.1, "low": -0.13, "high": -0.09}, ROW | {"mean": -0.0001, "low": -0.01, "high": 0.01},
             ROW | {"mean": 0.1, "low": 0.05, "high": 0.15, "group": "theirs"}],
}  # fmt: skip


def test_a_row_of_the_forest_says_its_numbers_and_its_side():
    found = in_node("given.rows.map(r => m.said(given, r).flat().join(''))", FOREST, "forest.js")
    assert "PiToMe minus ToMe: below, −0.100 [−0.130, −0.090] in accuracy. In percent" in found[0]
    assert "result: −12.5 [−16.3, −11.3]." in found[0] and "four cases" not in found[0]
    assert "no difference found, +0.000 [−0.010, +0.010] in accuracy; a true one of 0.020 would have been" in found[1]
    assert "above, +0.100 [+0.050, +0.150]" in found[2]


def test_the_forest_filters_and_its_axis_holds_every_interval():
    assert len(in_node("m.chosen(given, null, 'ours', 'tome')", FOREST, "forest.js")) == 2
    assert in_node("m.chosen(given, 'digits', 'theirs', 'whole')", FOREST, "forest.js") == []
    asked = "[m.edge(given, given.rows), m.edge(given, [given.rows[1]]), m.edge(given, [])]"
    edges = in_node(asked, FOREST, "forest.js")
    assert edges == [25, 2, 1]  # 18.75, 1.25 and nothing


def test_the_numbers_of_the_forest_are_those_of_the_records():
    """Every row of the chapter on quality, computed again from the outcomes, and all counterparts are there."""
    every = quality.tasks()
    data = quality.figure_data(every)
    assert list(every) == ["objects", "digits", "reviews", "pairs", "questions"] == [t["name"] for t in data["tasks"]]
    assert len({(row["task"], row["key"], row["rival"]) for row in data["rows"]}) == len(data["rows"]) > 100
    for row in data["rows"]:
        task = every[row["task"]]
        other = "whole" if row["rival"] == "whole" else task.record.rival_of(row["key"], row["rival"])
        one = task.difference(row["key"], other)
        assert all(abs(row[name] - getattr(one, name)) < 1e-5 for name in ("mean", "low", "high", "detectable")), row
        assert row["group"] == quality.group_of(row["key"].partition("@")[0]) in data["groups"]
    for name, task in every.items():
        ours = [row["rival"] for row in data["rows"] if (row["task"], row["key"]) == (name, f"pitome@{task.keep:g}")]
        assert {"tome", "whole"} <= set(ours)


def test_arms_stand_in_the_group_that_says_most_of_them():
    assert quality.group_of("pitome") == "PiToMe (paper)" and quality.group_of("pitome-released-clip") == "released"
    assert quality.group_of("pitome-hidden") == "hidden states" and quality.group_of("tome-hidden") == "controls"
    assert quality.group_of("mctf") is None


def with_points() -> tuple[live.LiveFigure, plt.Axes]:
    figure, axes = plt.subplots(1, 2, figsize=(4, 2))
    axes[1].set(xlim=(0, 1), ylim=(0, 1))
    points = [([(axes[1], 0.0, 1.0)], "corner:", " upper left"), ([(axes[1], 1.0, 0.0)], "corner:", " lower right")]
    return plots.points_figure(figure, points, "two corners"), axes[1]


def test_points_stand_where_the_axes_have_them():
    figure, ax = with_points()
    box = ax.get_position()
    expected = [[box.x0, 1 - box.y1], [box.x1, 1 - box.y0]]
    places = [point["places"][0] for point in figure.data["points"]]
    assert np.allclose(places, 100 * np.array(expected), atol=0.02)
    near = "given.map(([x, y]) => m.nearest([{places: [[10, 10], [60, 10]]}, {places: [[40, 80]]}], x, y, 200, 100))"
    assert in_node(near, [[11, 12], [58, 20], [41, 70], [36, 45]], "points.js") == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="no point 0 among 0"):
        plots.points_figure(plt.figure(), [], "nothing")


def test_photographs_are_jpeg_inside_and_png_afterwards():
    pytest.importorskip("IPython")
    from IPython.core.interactiveshell import InteractiveShell

    formatters = InteractiveShell.instance().display_formatter.formatters
    drawn = {}
    for name, inside in (("inside", plots.photographs()), ("after", contextlib.nullcontext())):
        with inside:
            drawn[name] = {kind: Figure in formatters[kind].type_printers for kind in ("image/jpeg", "image/png")}
    assert drawn["inside"] == {"image/jpeg": True, "image/png": False}
    assert drawn["after"] == {"image/jpeg": False, "image/png": True}


DEVICE, START = "CPU", ("CPU", "ViT-S, 224 px, fp32", 4)


def cost_cells(tier: str) -> list[dict]:
    return list(timings.load(ROOT / "results" / tier / "cost.json", "cost").values())


def test_the_estimate_says_what_is_on_record():
    """Each cell of the page is one of the record, and each usual one of the record is there, once."""
    devices = {"CPU": cost_cells("embedded"), "GPU": cost_cells("gpu")}
    data = plots.speed(devices, 0.9, START).data
    usual = [(device, cell) for device, cells in devices.items() for cell in cells
             if cell["keep"] == 0.9 and cell["mode"] in ("eager", "graph") and cell["proportional"] == "preset"
             and cell.get("every", 1) == cell.get("multiple", 1) == 1 and "autocast" not in cell["dtype"]
             and {"pitome", "tome", "whole"} <= set(cell.get("variants") or {})]
    assert len(data["cells"]) == len(usual) > 20
    assert len({(cell["device"], cell["model"], cell["batch"]) for cell in data["cells"]}) == len(usual)
    for shown, (device, cell) in zip(data["cells"], usual, strict=True):
        variants = cell["variants"]
        assert (shown["device"], shown["batch"]) == (device, cell["batch"]) and f"{cell['size']} px" in shown["model"]
        assert shown["whole"] == pytest.approx(1e3 * variants["whole"]["seconds"][1], rel=1e-3)
        for i, method in enumerate(("pitome", "tome")):
            told = variants[method]
            assert shown["times"][i] == pytest.approx(1e3 * told["seconds"][1], rel=1e-3)
            assert shown["faster"][i] == told["speedup"]
            assert shown["flops"][i] == pytest.approx(1 / told["implied"], rel=1e-3)


def figures() -> list[live.LiveFigure]:
    picture = np.full((56, 56, 3), 90, np.uint8)
    return [
        plots.energy_figure(picture, {0: draws(0, 16, 4), 2: draws(1, 16, 4)}, 4, mergeable=5, start=(2, 3)),
        plots.one_merge(draws(0, 16, 3).sigmoid(), 4, 0.9),
        plots.six_tokens(draws(0, 6, 2), 0.5),
        plots.cluster_figure([(3, 3, 3, 3), (5, 3, 2, 2)], [0.9, 0.0], [0.3, 0.1], remove=3, margin=0.5),
        plots.forest_figure(FOREST, "ours", "tome"),
        with_points()[0],
        plots.speed({DEVICE: cost_cells("embedded")}, 0.9, START),
    ]


def check_forms(figure: live.LiveFigure) -> None:
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG") and figure.kind in bundle["text/plain"]
    text = bundle["text/html"]
    assert data_of(text) == json.loads(json.dumps(figure.data)) and "alt=" in text and len(text) < PAGE
    assert f'Live.figure("{figure.kind}"' in (SCRIPTS / f"{figure.kind.replace('-', '_')}.js").read_text()
    assert not re.search(r'(?:src|href)="(?!data:)', text)


@pytest.mark.parametrize("figure", figures(), ids=lambda figure: figure.kind)
def test_a_figure_has_three_forms(figure):
    check_forms(figure)


def test_a_chapter_chooses_the_methods_of_its_token_map(build_vit, images):
    photograph = np.asarray(255 * images(1, 224)[0].sigmoid().movedim(0, -1)).astype(np.uint8)
    arms = (live.ARMS[1], ("unsorted", "random", "pitome", {"split": "position"}))
    figure = plots.token_map_figure(build_vit(img_size=224), {"one": photograph}, {"keep": 1, "layer": 2}, arms)
    check_forms(figure)
    assert [m["label"] for m in figure.data["methods"]] == ["ToMe", "unsorted"]
    assert "unsorted" in figure.label and len(figure.data["pictures"][0]["plans"]) == len(figure.data["macs"]) == 2
    colours = {arm[1] for arm in (*live.ARMS, *arms)}
    assert all(f".live-dot.live-{colour}" in (SCRIPTS / "live.css").read_text() for colour in colours)


def test_the_switches_replay_what_was_recorded(build_vit, images):
    """Eight settings in the order of the script; the corners are the methods that they are called by."""
    model, batch = build_vit(img_size=224), images(2, 224)
    side = int((pc.flops(model).tokens[0] - model.num_prefix_tokens) ** 0.5)
    masks = draws(2, 2, side, side).sigmoid() * (draws(3, 2, side, side) > 0)
    scenes = [dict(zip(("one", "two"), of, strict=True)) for of in (batch, masks)]
    figure = plots.switches_figure(model, *scenes, keep=0.9)
    check_forms(figure)
    data = figure.data
    assert data["corners"] == ["PiToMe", "", "", "energy-sorted BSM", "", "", "", "ToMe"]
    assert len({tuple(plans) for plans in zip(*(p["plans"] for p in data["pictures"]), strict=True)}) == 8
    for state, (method, options) in {0: ("pitome", {}), 3: ("pitome", live.ARMS[2][3]), 7: ("tome", {})}.items():
        with pc.patched(model, method, 0.9, **options), pc.record(model) as trace, torch.no_grad():
            model.forward_features(batch.double())
        assert data["tokens"] == [side**2, *(layer.plan.num_tokens for layer in trace.last.layers)]
        for item, picture in enumerate(data["pictures"]):
            every = np.frombuffer(base64.b64decode(picture["plans"][state]), np.uint8)
            layers = [part.tolist() for part in np.split(every, np.cumsum(data["tokens"][:-1])[:-1])]
            given = {"layers": layers, "inside": picture["inside"], "outside": picture["outside"]}
            at = f"m.compose(given.layers, {side**2}, {len(layers)})"
            found = in_node(f"m.mixed({at}, given.inside, given.outside)", given)
            at, cover = trace.assignment[item], masks[item].flatten()
            same = at[:, None] == at[None, :]
            expected = (cover > 0.5) & (same & (cover < 0.05)[None, :]).any(1)
            assert found == torch.nonzero(expected).flatten().tolist() and picture["inside"] and picture["outside"]


def test_bytes_hold_what_they_are_given():
    assert base64.b64decode(live.packed(np.array([0, 255]))) == b"\x00\xff"
    assert base64.b64decode(live.packed(np.array([-1, 127]))) == b"\xff\x7f"
    with pytest.raises(ValueError, match="0 to 256"):
        live.packed(np.array([0, 256]))
    assert "<\\/script>" in live.box("kind", {"text": "</script>"}, "label", "")


def test_colours_of_the_page_are_those_of_the_plots():
    style = (SCRIPTS / "live.css").read_text().split("html[data-theme")[0]
    for name in ("pitome", "tome", "accent", "random"):
        assert f"--live-{name}: {plots.COLOURS[name].lower()};" in style


def test_scripts_ask_no_host_and_are_no_modules():
    for script in SCRIPTS.glob("*.js"):
        text = re.sub(r"http://www\.w3\.org/2000/svg", "", script.read_text())
        assert not re.search(r"https?:|fetch\(|XMLHttpRequest|^import |^export ", text, re.MULTILINE), script
