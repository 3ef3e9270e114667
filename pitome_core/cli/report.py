"""The report of a diagnosis: one page without a script, without a network."""

from __future__ import annotations

import base64
import html
import io
from typing import Any

import torch
from torch import Tensor

import pitome_core as pc
from pitome_core.diagnosis import image_call

from .loading import Loaded, pillow

SHOWN = 4  # pictures whose tokens are drawn
LEGEND = """
<p>FLOPs: share of the whole model's. Times as fast: median of the rounds (least to greatest). Same answer: pictures
whose top answer is the whole model's. Likeness: mean cosine of the pooled output with the whole model's. Patches: the
same of the patch tokens. In brackets: 95 % intervals. An arrow marks the recommendation.</p>
<p>Of the keys in each layer of the whole model: the mean cosine of two of them (parallel: at or above the margin); the
median cosine of a key with its nearest one when the mean key is taken off, and what chance gives (tight: at least
that); the standard deviation of the energies; the share of keys with no other one within the margin.</p>
"""
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
h1 { overflow-wrap: anywhere }
table { border-collapse: collapse; margin: 1rem 0; font-size: .9rem; font-variant-numeric: tabular-nums }
table { display: block; overflow-x: auto; white-space: nowrap }
th, td { text-align: left; padding: .2rem .8rem .2rem 0; border-bottom: 1px solid #ddd }
img { max-width: 100% } figure { display: inline-block; margin: .5rem }
.pair { display: inline-block; white-space: nowrap }
.pair figure { margin: .25rem; max-width: 48%; vertical-align: top; white-space: normal }
@media (prefers-color-scheme: dark) { body { background: #181818; color: #ddd } th, td { border-color: #444 } }
"""


def maps(loaded: Loaded, images: Tensor, method: str, keep: float, layer: int = -1) -> list[Any]:
    """What merged in each of the prepared pictures `(n, 3, H, W)`, as arrays `(H, W, 3)` uint8."""
    model = loaded.model
    device = next(model.parameters()).device
    with pc.patched(model, method, keep), pc.record(model) as trace, torch.no_grad():
        image_call(model)(images.to(device))
    return [pc.token_map(trace, picture, layer, item) for item, picture in enumerate(loaded.seen(images))]


def page(found: pc.Diagnosis, loaded: Loaded, images: Tensor, name: str) -> str:
    """The report as HTML."""
    parts = [f"<h1>{html.escape(name)}</h1>", found._repr_html_(), LEGEND, _plot(found)]
    if pc.methods()[_shown(found).method].partition:
        one, few = _shown(found), images[:: -(-len(images) // SHOWN)]  # spread over all of them
        parts.append(f"<h2>What merges: {html.escape(one.method)} at keep {one.keep:g}</h2>")
        for seen, drawn in zip(loaded.seen(few), maps(loaded, few, one.method, one.keep), strict=True):
            picture = (seen * 255).round().byte().permute(1, 2, 0).numpy()
            pair = _figure(picture, "as the model sees it") + _figure(drawn, "its tokens after the last layer")
            parts.append(f'<div class="pair">{pair}</div>')
    body = "\n".join(parts)
    return (f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
            f"<style>{STYLE}</style></head><body>\n{body}\n<p>pitome {pc.__version__}</p></body></html>\n")


def _shown(found: pc.Diagnosis) -> Any:
    return found.settings[found.recommended or 0]


def _figure(array: Any, caption: str) -> str:
    stream = io.BytesIO()
    pillow().fromarray(array).save(stream, "png")
    return _image(stream.getvalue(), caption)


def _plot(found: pc.Diagnosis) -> str:
    """The picture of `Diagnosis.plot`; nothing where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    figure, stream = Figure(figsize=(6, 4), layout="constrained"), io.BytesIO()
    found.plot(figure.subplots())
    figure.savefig(stream, format="png", dpi=110)
    return _image(stream.getvalue(), "What stays against what it costs. Dashed: the target.")


def _image(png: bytes, caption: str) -> str:
    source = base64.b64encode(png).decode()
    return (f'<figure><img src="data:image/png;base64,{source}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>")
