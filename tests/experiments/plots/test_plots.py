"""Interactive figures: HTML, a still and a line of text, all from the same states; and what curves leave out."""

from __future__ import annotations

import base64
import json
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest

from pitome_core.experiments import plots
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import Cell


def state(shift: float) -> dict:
    whole = [1.0, 1.0, 1.2, 1.4]
    return {
        "whole": whole, "pitome": [v - shift * (v - 1) for v in whole], "tome": whole, "distance": [shift, 0.0],
        "wrong": [1, 0], "ranks": [0, 1, 1, 0],
    }


FIGURES = {
    "margin": lambda: plots.MarginSlider(
        np.full((28, 28, 3), 128, np.uint8), np.arange(12).reshape(3, 2, 2), [0.1, 0.2, 0.3], 2, 1, "a-margin"
    ),
    "spectrum": lambda: plots.SpectrumSliders(
        [[state(0.1), state(0.2)], [state(0.3), state(0.4)]],
        [("cosine", ["0.9", "0.1"], 1), ("sizes <i>n</i>", ["2, 2", "3, 1"], 0)],
        "a-spectrum",
    ),
}


@pytest.mark.parametrize("kind", list(FIGURES))
def test_three_forms(kind):
    """Every slider has a label of its own, the drawing a name, the still is a PNG, nothing comes from elsewhere."""
    figure = FIGURES[kind]()
    bundle = figure._repr_mimebundle_()
    html = bundle["text/html"]
    assert set(bundle) == {"text/html", "image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG") and kind in bundle["text/plain"].lower()
    inputs = re.findall(r'<input id="([^"]+)"', html)
    assert len(inputs) == len(figure.sliders) and all(f'<label for="{name}">' in html for name in inputs)
    assert 'role="img"' in html and "aria-label" in html
    assert not re.search(r'(?:src|href)="(?!data:)', html)


def test_data_hold_every_state():
    html = FIGURES["spectrum"]()._repr_mimebundle_()["text/html"]
    data = json.loads(re.search(r"data = (\{.*\});", html).group(1))
    assert np.array(data["y"]).shape == (2, 2, 3, 4) and np.array(data["ranks"]).shape == (2, 2, 4)
    assert data["said"][1][0] == ["0.300, 1 wrong merge", "0.000, 0 wrong merges"]
    assert 'value="1"' in html and 'value="0"' in html  # where the sliders start


def test_curves_hold_the_arm_as_it_is(tmp_path):
    """Cells with a switch, in other layers or retrained are no points of the curve; seeds are averaged."""
    record = results.Record(tmp_path / "none.json", {}, {"id": ["a", "b"]}, [], {})
    cells = {Cell("whole"): 1.0, Cell("tome", 0.9): 0.9, Cell("tome", 0.8): 0.8, Cell("tome", 0.8, False): 0.8}
    cells |= {Cell("random-merge", 0.8, seed=seed): 0.8 for seed in (0, 1)}
    for i, (cell, share) in enumerate(cells.items()):
        record.cells[cell.key] = cell.describe() | {"share": share, "outcomes": {"correct": [i, i]}}
    for more in ({"layers": "all"}, {"retrained": True}, {"order": "released"}, {"towers": "both"}):
        about = Cell("tome", 0.8).describe() | more
        record.cells[Cell.of(about).key] = about | {"share": 0.6, "outcomes": {"correct": [99, 99]}}
    _, ax = plt.subplots()
    plots.against_cost(ax, record, "correct", ["tome", "random-merge"], bands=())
    curves = {line.get_color(): line.get_xydata().tolist() for line in ax.get_lines() if line.get_color() != "black"}
    plt.close()
    assert curves == {plots.ARMS["tome"][0]: [[0.8, 2], [0.9, 1]], plots.ARMS["random-merge"][0]: [[0.8, 4.5]]}


def test_curves_of_another_value_against_another_cost(tmp_path):
    """A function of the key stands for the outcome, and any number that cells have for the share; bands are paired."""
    record = results.Record(tmp_path / "none.json", {}, {"id": ["a", "b"]}, [], {})
    for cell, tokens in ((Cell("whole"), 144), (Cell("tome", 0.9), 45), (Cell("tome", 0.8), 12)):
        record.cells[cell.key] = cell.describe() | {"share": 0.5, "tokens": tokens, "outcomes": {}}
    gone = {"whole": [9, 9], "tome@0.9": [5, 7], "tome@0.8": [1, 1]}
    _, ax = plt.subplots()
    plots.against_cost(ax, record, lambda key: np.array(gone[key]), ["tome"], bands=["tome"], cost="tokens")
    (curve,) = [line for line in ax.get_lines() if line.get_color() == plots.ARMS["tome"][0]]
    band, dot = ax.collections[0].get_paths()[0].vertices, ax.get_lines()[-1].get_xydata().tolist()
    plt.close()
    assert curve.get_xydata().tolist() == [[12, -8], [45, -3]] and dot == [[144, 0]]
    assert band[:, 1].min() == -8 and band[:, 1].max() == -2
