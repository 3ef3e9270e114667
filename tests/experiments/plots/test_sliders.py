"""Figures with sliders: HTML, a still and a line of text, all from the same states."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest

from pitome_core.experiments import plots


def state(shift: float) -> dict:
    whole = [1.0, 1.0, 1.2, 1.4]
    return {
        "whole": whole, "pitome": [v - shift * (v - 1) for v in whole], "tome": whole, "distance": [shift, 0.0],
        "wrong": [1, 0], "ranks": [0, 1, 1, 0],
    }


FIGURES = {
    "spectrum": lambda: plots.SpectrumSliders(
        [[state(0.1), state(0.2)], [state(0.3), state(0.4)]],
        [("cosine", ["0.9", "0.1"], 1), ("sizes <i>n</i>", ["2, 2", "3, 1"], 0)],
        "a-spectrum",
    ),
}


@pytest.mark.parametrize("kind", list(FIGURES))
def test_three_forms(kind):
    """Every slider has a label and the drawing a name, the still is a PNG, and nothing is loaded from elsewhere."""
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
