"""Draw the logo, the favicon and the picture for link previews from one table: `python tools/draw_logo.py`.

The mark is the method in small: a 4 x 4 grid of tokens in which uniform regions have merged into larger squares
and the distinctive tokens stand as they were.
"""

from __future__ import annotations

from pathlib import Path

STATIC = Path(__file__).resolve().parents[1] / "book" / "_static"
BLUE, SKY, ORANGE, GREEN = "#0072B2", "#56B4E9", "#E69F00", "#009E73"  # distinct under colour blindness
# column, row, side, colour; in grid units
SQUARES = [
    (0, 0, 2, SKY), (2, 0, 1, ORANGE), (3, 0, 1, BLUE), (2, 1, 1, BLUE), (3, 1, 1, GREEN),
    (0, 2, 1, GREEN), (1, 2, 1, ORANGE), (0, 3, 1, BLUE), (1, 3, 1, GREEN), (2, 2, 2, SKY),
]
UNIT, GAP, ROUND = 24, 4, 4


def svg(label: str) -> str:
    side = 4 * UNIT
    rects = "".join(
        f'<rect x="{x * UNIT + GAP / 2:g}" y="{y * UNIT + GAP / 2:g}" width="{s * UNIT - GAP}" '
        f'height="{s * UNIT - GAP}" rx="{ROUND}" fill="{colour}"/>\n'
        for x, y, s, colour in SQUARES
    )
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {side} {side}" width="{side}" height="{side}" '
            f'role="img" aria-label="{label}">\n{rects}</svg>\n')


def preview(path: Path) -> None:
    """1200 x 630 pixels, what sites that show a link ask for; they take no SVG."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.patches import FancyBboxPatch

    fig = plt.figure(figsize=(12, 6.3), dpi=100, facecolor="#fbfbf9")
    ax = fig.add_axes((0, 0, 1, 1), xlim=(0, 1200), ylim=(630, 0))
    ax.axis("off")
    unit, left, top = 85, 90, 145
    for x, y, s, colour in SQUARES:
        pad = 10
        ax.add_patch(FancyBboxPatch((left + x * unit + pad, top + y * unit + pad), s * unit - 2 * pad,
                                    s * unit - 2 * pad, boxstyle="round,pad=0,rounding_size=12", fc=colour, ec="none"))
    ax.text(510, 280, "PiToMe, step by step", fontsize=40, fontweight="bold", color="#1b2733")
    ax.text(510, 345, "Energy-based token merging for Vision Transformers,", fontsize=18, color="#43515e")
    ax.text(510, 383, "as an executable book and a small tested package", fontsize=18, color="#43515e")
    fig.savefig(path, metadata={"Software": None})


if __name__ == "__main__":
    (STATIC / "logo.svg").write_text(svg("PiToMe, step by step"))
    (STATIC / "favicon.svg").write_text(svg("PiToMe"))
    preview(STATIC / "social.png")
