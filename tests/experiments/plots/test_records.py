"""Curves over the cost: which cells are on them, and what is drawn."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from pitome_core.experiments import plots
from pitome_core.experiments.records import results
from pitome_core.experiments.records.cells import LABELS, Cell
from pitome_core.experiments.records.statistics import paired_difference


def test_curves_hold_the_arm_as_it_is(tmp_path):
    """Cells with a switch, in other layers or retrained are not on the curve; seeds are averaged."""
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
    """The outcome may be a function of the key, the cost may be another field of the cells, and bands are paired."""
    record = results.Record(tmp_path / "none.json", {}, {"id": ["a", "b"]}, [], {})
    for cell, tokens in ((Cell("whole"), 144), (Cell("tome", 0.9), 45), (Cell("tome", 0.8), 12)):
        record.cells[cell.key] = cell.describe() | {"share": 0.5, "tokens": tokens, "outcomes": {}}
    values = {"whole": [9, 9], "tome@0.9": [5, 7], "tome@0.8": [1, 1]}
    _, ax = plt.subplots()
    plots.against_cost(ax, record, lambda key: np.array(values[key]), ["tome"], bands=["tome"], cost="tokens")
    (curve,) = [line for line in ax.get_lines() if line.get_color() == plots.ARMS["tome"][0]]
    band, dot = ax.collections[0].get_paths()[0].vertices, ax.get_lines()[-1].get_xydata().tolist()
    plt.close()
    assert curve.get_xydata().tolist() == [[12, -8], [45, -3]] and dot == [[144, 0]]
    # Two items: differences -8 and -8, or -4 and -2, of standard error 1; t of one degree of freedom is 12.706.
    assert set(band[:, 1].round(3)) == {-8, -15.706, 9.706}


def test_cells_stand_beside_their_counterparts_or_are_not_run(tmp_path):
    """A preset that does not count sizes stands beside ToMe that does not, and beside nothing where that is missing."""
    record = results.Record(tmp_path / "none.json", {}, {"id": list(range(40))}, [], {})
    noise = np.random.default_rng(0).normal(size=(3, 40))
    cells = {Cell("pitome", 0.9): noise[0] - 1, Cell("tome", 0.9): noise[1], Cell("tome", 0.9, False): noise[2] + 9,
             Cell("pitome-released-bert", 0.9): noise[2] + 9, Cell("pitome-released-bert", 0.8): noise[2],
             Cell("pitome-released-llava", 0.9): noise[2]}
    cells |= {Cell("pitome-shuffled", 0.9, seed=seed): noise[0] - 3 for seed in range(2)}
    for cell, values in cells.items():
        record.cells[cell.key] = cell.describe() | {"outcomes": {"correct": values.tolist()}}
    # Of dct there is no cell, and no arm is like the preset for LLaVA, whose layers differ.
    keys = ["pitome@0.9", "pitome-released-bert@0.9", "pitome-released-bert@0.8", "dct@0.9",
            "pitome-released-llava@0.9"]
    figure, axes = plt.subplots(1, 2)
    found = plots.beside(axes[0], record, keys, lambda a, b: record.difference(a, b, "correct"))
    control = plots.beside(axes[1], record, keys[:2], lambda a, b: record.difference(a, b, "correct"), "shuffled")
    said = [[text.get_text() for text in ax.texts] for ax in axes]
    ticks = [label.get_text() for label in axes[0].get_yticklabels()]
    plt.close(figure)
    assert found["pitome@0.9"].side == -1 and found["pitome-released-bert@0.9"].mean == 0
    assert found["pitome-released-bert@0.8"] is None
    assert control["pitome@0.9"].mean > 1.9 and control["pitome-released-bert@0.9"] is None
    assert found["dct@0.9"] is None and said == [["not run", "not run", "no counterpart"], ["not run"]]
    assert ticks == [f"{LABELS[key.partition('@')[0]]}, {key.partition('@')[2]}" for key in keys]
    assert axes[1].get_yticklabels()[0].get_text() == LABELS["pitome"]  # one strength goes without saying


def test_names_above_the_lines_leave_the_width_to_the_lines():
    """Names and notes stand half a row above the line they name, the first line at the top, and take no room beside."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(4, 2), sharey=True, layout="constrained")
    one = paired_difference(np.arange(9.0), np.zeros(9))
    rows = [("a name that is far longer than its panel is wide", one), ("b", one)]
    plots.forest(left, rows)
    plots.forest(right, rows)
    plots.names_above(left, [name for name, _ in rows])
    plots.names_above(right, [], ["44 % saved", "12 % saved"])
    figure.canvas.draw()
    places = [[(text.get_text(), round(text.get_position()[1], 2)) for text in ax.texts] for ax in (left, right)]
    shown = any(tick.label1.get_visible() for tick in left.yaxis.get_major_ticks())
    (low, high), wide, over = left.get_ylim(), left.get_position().width, left.get_zorder() > right.get_zorder()
    plt.close(figure)
    assert places == [[(rows[0][0], -0.43), ("b", 0.57)], [("44 % saved", -0.43), ("12 % saved", 0.57)]]
    assert not shown and low > 1 > 0 > -0.43 > high and wide > 0.4 and over
