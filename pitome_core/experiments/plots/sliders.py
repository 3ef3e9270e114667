"""Figures with sliders that work in a page without a network: every state is computed beforehand."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np

from .style import COLOURS, png_text


class SliderFigure:
    """A figure with sliders over states that were computed beforehand, in plain JavaScript.

    It displays as HTML where HTML runs, as a PNG where HTML does not run, and as a line of text elsewhere. The sliders
    are those of the browser, so that arrow keys move them and screen readers announce their values.

    A subclass has three methods: `_drawing` returns the HTML of the drawing; `_script` returns the data, and the
    JavaScript that updates the drawing from `box` (the element), `data` and `at` (the positions of the sliders);
    `_still` returns the matplotlib figure of the state in which the sliders start.

    `name` is the id of the element in the page. `sliders` has three entries for each slider: its label (HTML), its
    values as text, and the index of the value at which it starts.
    """

    width = "26rem"

    def __init__(self, name: str, sliders: Sequence[tuple[str, Sequence[str], int]]):
        self.name, self.sliders = name, [(label, list(values), start) for label, values, start in sliders]

    def _drawing(self) -> str:
        raise NotImplementedError

    def _script(self) -> tuple[dict, str]:
        raise NotImplementedError

    def _still(self):
        raise NotImplementedError

    def _text(self) -> str:
        return f"{type(self).__name__}({' x '.join(str(len(values)) for _, values, _ in self.sliders)} states)"

    def _html(self) -> str:
        box, (data, script) = self.name, self._script()
        controls = "".join(
            f"""<label for="{box}-input{i}">{label} = <output>{values[start]}</output></label>
<input id="{box}-input{i}" type="range" min="0" max="{len(values) - 1}" value="{start}" style="width:100%">"""
            for i, (label, values, start) in enumerate(self.sliders)
        )
        values = json.dumps([values for _, values, _ in self.sliders])
        return f"""<div id="{box}" class="slider-figure" style="max-width:{self.width};margin:0 auto">
{controls}
{self._drawing()}</div>
<script>(function () {{
  const box = document.getElementById("{box}"), data = {json.dumps(data, separators=(",", ":"))};
  const values = {values}, inputs = [...box.querySelectorAll("input")], outputs = box.querySelectorAll("label output");
  function draw() {{
    const at = inputs.map(function (input) {{ return +input.value; }});
    at.forEach(function (step, i) {{
      outputs[i].textContent = values[i][step];
      inputs[i].setAttribute("aria-valuetext", values[i][step]);
    }});
    {script}
  }}
  inputs.forEach(function (input) {{ input.addEventListener("input", draw); }});
  draw();
}})();</script>"""

    def _repr_mimebundle_(self, include=None, exclude=None) -> dict[str, str]:
        return {"text/html": self._html(), "image/png": png_text(self._still()), "text/plain": self._text()}


class SpectrumSliders(SliderFigure):
    """Eigenvalues before and after merging with PiToMe and ToMe, with two sliders.

    `states[i][j]` belongs to value i of the first slider and value j of the second. It is a dict with these entries:

    - `whole`, `pitome` and `tome`: eigenvalues in ascending order, without the first;
    - `distance`: the spectral distances of PiToMe and ToMe;
    - `wrong`: how many merges of PiToMe and of ToMe join two clusters;
    - `ranks`: the clusters of the 2k tokens of highest energy, in the order of their energy.
    """

    width = "34rem"
    CLUSTERS = ("#56B4E9", "#E69F00", "#009E73", "#CC79A7")
    WIDE, HIGH = 520, 330  # size of the drawing
    LEFT, TOP, BOTTOM = 44, 12, 250  # edges of the plot in the drawing

    def __init__(self, states: Sequence[Sequence[dict]], sliders: Sequence, name: str):
        super().__init__(name, sliders)
        self.states = states
        self.top = max(max(state["whole"]) for row in states for state in row)

    def _y(self, value: float) -> float:
        return self.BOTTOM - (value - 1) / (self.top - 1) * (self.BOTTOM - self.TOP - 8)

    def _x(self, rank: int, ranks: int) -> float:
        return self.LEFT + 12 + rank * (self.WIDE - self.LEFT - 24) / max(ranks - 1, 1)

    def _drawing(self) -> str:
        first = self.states[0][0]
        n, ranks = len(first["whole"]), len(first["ranks"])
        axis = f'x1="{self.LEFT}" y1="{self.BOTTOM}" x2="{self.WIDE}" y2="{self.BOTTOM}"'
        parts = [f'<line {axis} stroke="currentColor"/>']
        for value in np.arange(1, self.top + 1e-9, 0.1):
            parts.append(f'<text x="{self.LEFT - 6}" y="{self._y(value) + 4:.0f}" text-anchor="end">{value:.1f}</text>')
        for i in range(n):
            x = self._x(i, n)
            parts += [
                f'<line class="whole" x1="{x - 7:.1f}" x2="{x + 7:.1f}" stroke="currentColor" stroke-width="2"/>',
                f'<circle class="pitome" cx="{x - 3:.1f}" r="3.6" fill="{COLOURS["pitome"]}"/>',
                f'<path class="tome" fill="{COLOURS["tome"]}" d="M0 -4.5L4.5 0L0 4.5L-4.5 0Z" data-x="{x + 3:.1f}"/>',
            ]
        side = (self.WIDE - self.LEFT) / ranks
        for i in range(ranks):
            x = self.LEFT + i * side
            parts.append(f'<rect x="{x + 1:.1f}" y="{self.HIGH - 44}" width="{side - 2:.1f}" height="22"/>')
            parts.append(f'<text x="{x + side / 2:.1f}" y="{self.HIGH - 8}" text-anchor="middle">{"AB"[i % 2]}</text>')
        words = f"the {ranks} tokens of highest energy; colours: clusters"
        parts.append(f'<text x="{self.LEFT}" y="{self.HIGH - 52}">{words}</text>')
        label = "Eigenvalues before merging and after it with PiToMe and ToMe; below, clusters of the mergeable tokens"
        return f"""<div>PiToMe (dots): SD <span></span>. ToMe (diamonds): SD <span></span>. Bars: before merging.</div>
<svg viewBox="0 0 {self.WIDE} {self.HIGH}" width="100%" role="img" aria-label="{label}" font-size="13" \
fill="currentColor">{"".join(parts)}</svg>"""

    def _script(self) -> tuple[dict, str]:
        def heights(values):
            return [round(self._y(v), 1) for v in values]

        def caption(state, i):
            return f"{state['distance'][i]:.3f}, {state['wrong'][i]} wrong merge{'' if state['wrong'][i] == 1 else 's'}"

        data = {
            "y": [[[heights(s[name]) for name in ("whole", "pitome", "tome")] for s in row] for row in self.states],
            "ranks": [[list(map(int, s["ranks"])) for s in row] for row in self.states],
            "said": [[[caption(s, 0), caption(s, 1)] for s in row] for row in self.states],
            "colours": self.CLUSTERS,
        }
        return data, """const [y, ranks, said] = [data.y, data.ranks, data.said].map(function (all) {
      return all[at[0]][at[1]];
    });
    box.querySelectorAll(".whole").forEach(function (line, i) {
      line.setAttribute("y1", y[0][i]); line.setAttribute("y2", y[0][i]);
    });
    box.querySelectorAll(".pitome").forEach(function (dot, i) { dot.setAttribute("cy", y[1][i]); });
    box.querySelectorAll(".tome").forEach(function (dot, i) {
      dot.setAttribute("transform", "translate(" + dot.dataset.x + " " + y[2][i] + ")");
    });
    box.querySelectorAll("rect").forEach(function (rect, i) { rect.setAttribute("fill", data.colours[ranks[i]]); });
    box.querySelectorAll("span").forEach(function (span, i) { span.textContent = said[i]; });"""

    def _still(self):
        at = [start for _, _, start in self.sliders]
        state = self.states[at[0]][at[1]]
        figure, (ax, strip) = plt.subplots(2, 1, figsize=(6, 3.9), height_ratios=[6, 1])
        ranks = np.arange(2, len(state["whole"]) + 2)
        ax.plot(ranks, state["whole"], "_", color="black", markersize=12, label="before")
        for shift, name, marker, label in ((-0.15, "pitome", "o", "PiToMe"), (0.15, "tome", "D", "ToMe")):
            legend = f"{label}, SD {state['distance'][name == 'tome']:.3f}"
            ax.plot(ranks + shift, state[name], marker, color=COLOURS[name], markersize=4.5, label=legend)
        words = [f"{re.sub('<[^>]+>', '', label)} {values[start]}" for label, values, start in self.sliders]
        ax.set(ylabel="eigenvalue", xlabel="rank", title=", ".join(words))
        ax.legend(fontsize=8)
        for i, cluster in enumerate(state["ranks"]):
            strip.add_patch(plt.Rectangle((i, 0), 0.92, 1, color=self.CLUSTERS[int(cluster)]))
            strip.text(i + 0.46, 0.5, "AB"[i % 2], ha="center", va="center", fontsize=8)
        strip.set(xlim=(0, len(state["ranks"])), ylim=(0, 1), title="the tokens of highest energy, by cluster")
        strip.set_axis_off()
        return figure
