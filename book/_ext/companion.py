"""What the book needs beyond Jupyter Book's settings.

- The repository's address comes from one place, and the buttons and the publishing address follow from it.
- Equations that a docstring names lead to the page of notation.
- The execution cache knows the code, the locked requirements, the recorded results and the tier; jupyter-cache alone
  knows the notebook's own cells and would serve stale outputs.
- Plots and heat maps have a class, by which dark mode turns their paper dark; pictures stay as they are.
- Screen readers get tables, folds and references without the faults that axe finds in them.
- Colab opens the notebooks of the branch `colab`, which `tools/colab.py` writes without what Sphinx alone shows.
- Pages ask no other host for anything: MathJax is copied in, live-code scripts are left out.
"""

from __future__ import annotations

import hashlib
import html
import importlib.util
import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import numpy as np
from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx

# What a notebook's outputs depend on besides its own cells.
SOURCES = ("requirements.lock", "pitome_core", "results")


def repository_url(root: Path) -> str:
    """The remote called origin if it is on GitHub, else the address in pyproject.toml."""
    ask = ["git", "-C", str(root), "remote", "get-url", "origin"]
    remote = subprocess.run(ask, capture_output=True, text=True).stdout.strip() if shutil.which("git") else ""
    on_github = re.search(r"github\.com[:/]([\w.-]+)/([\w.-]+?)(?:\.git)?/?$", remote)
    if on_github:
        return "https://github.com/{}/{}".format(*on_github.groups())
    return tomllib.loads((root / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


def pages_url(repository: str) -> str:
    """Where GitHub Pages puts the book of a repository."""
    owner, name = repository.rstrip("/").split("/")[-2:]
    return f"https://{owner.lower()}.github.io/{name}/"


def fingerprint(root: Path, *names: str) -> str:
    """A hash of these files, and of all files in these folders."""
    digest = hashlib.sha256()
    for source in (root / name for name in names):
        files = sorted(source.rglob("*")) if source.is_dir() else [source]
        for file in files:
            if file.is_file() and "__pycache__" not in file.parts:
                digest.update(f"\0{file.relative_to(root).as_posix()}\0".encode())
                digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def execution_key(root: Path) -> str:
    """`<tier>-<device>-<hash>`: changes if a notebook could print something else although its cells are the same."""
    tier, device = os.environ.get("PITOME_PROFILE") or "embedded", os.environ.get("PITOME_DEVICE") or "default"
    return f"{tier}-{device.replace(':', '')}-{fingerprint(root, *SOURCES)}"


def configure(app: Sphinx, config) -> None:
    root = Path(app.srcdir)
    config.html_theme_options["repository_url"] = repository_url(root)
    config.html_baseurl = config.ogp_site_url = pages_url(repository_url(root))
    config.ogp_image = config.html_baseurl + "_static/social.png"

    # Without outdated pages Sphinx copies no static file: a new style sheet makes it write all pages again.
    config.companion_looks = fingerprint(root, "book/_static", "book/_ext")

    key = execution_key(root)
    caches = Path(app.outdir).parent / ".execution"
    config.nb_execution_cache_path = str(caches / key)  # a change makes Sphinx read every page again
    tier = key.rsplit("-", 1)[0]
    for old in caches.glob(f"{tier}-*"):
        if old.name != key:
            shutil.rmtree(old)


def outdated(app: Sphinx, env, added: set, changed: set, removed: set) -> list[str]:
    """Prose takes numbers from notebooks by glue: read it again when a notebook changes."""
    if any(name.startswith("notebooks/") for name in added | changed | removed):
        return [name for name in env.found_docs if name.startswith("book/")]
    return []


def copy_mathjax(app: Sphinx) -> None:
    if app.builder.format == "html":
        package = Path(importlib.util.find_spec("sphinx-mathjax-offline").origin).parent
        static = Path(app.outdir, "_static")
        static.mkdir(parents=True, exist_ok=True)
        shutil.copy(package / "static" / "mathjax" / "tex-svg-full.js", static / "mathjax.js")


def link_equations(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """`eq. 4` in a docstring leads to the equation on the page of notation. In a terminal it stays as it is."""
    lines[:] = [re.sub(r"\beq\. (\d)", r":ref:`eq. \1 <eq-\1>`", line) for line in lines]


def drop_live_code(app: Sphinx, pagename, templatename, context, doctree) -> None:
    """sphinx-thebe names another host and declares a constant twice, even where it is switched off."""
    def is_thebe(script) -> bool:
        return "thebe" in f"{getattr(script, 'filename', script)} {getattr(script, 'attributes', '')}".lower()

    context["script_files"] = [script for script in context.get("script_files", []) if not is_thebe(script)]


def open_in_colab(app: Sphinx, pagename, templatename, context, doctree) -> None:
    branch = app.config.html_theme_options["repository_branch"]
    buttons = [button for group in context.get("header_buttons", ()) for button in group.get("buttons", ())]
    for button in buttons:
        if button.get("text") == "Colab":
            button["url"] = button["url"].replace(f"/blob/{branch}/", "/blob/colab/")


# What screen readers stumble over in the HTML of the theme and its extensions, and what stands there in place of it.
AUDIBLE = (
    ('<th class="head"><p></p></th>', "<td></td>"),  # a header without words
    (' aria-label="Toggle hidden content"', ""),  # another name than the words that are shown
    (' role="doc-biblioentry"', ""),  # a role that is no longer one
    ('<div role="list" class="citation-list">', '<div class="citation-list">'),  # a list without items
)


def make_audible(app: Sphinx, pagename, templatename, context, doctree) -> None:
    for before, after in AUDIBLE:
        context["body"] = context.get("body", "").replace(before, after)


# A figure is a plot if most of it is white: photographs and token maps fill their frames. Bars, bands and heat maps
# fill much of theirs as well, in few colours. A drawing that would be taken for one of these has the class `picture`.
PAPER, PAPER_OF_MAPS, FEW = 0.75, 0.4, 2000


def is_plot(file: Path) -> bool:
    with Image.open(file) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    white = (pixels == 255).all(axis=1).mean()
    return white > PAPER or (white > PAPER_OF_MAPS and len(np.unique(pixels[::7], axis=0)) < FEW)


def mark_plots(app: Sphinx, doctree) -> None:
    for node in doctree.findall(nodes.image):
        file = Path(app.srcdir, node["uri"].lstrip("/"))
        if "picture" not in node["classes"] and file.suffix == ".png" and file.is_file() and is_plot(file):
            node["classes"].append("plot")


def write_redirect(app: Sphinx, exception: Exception | None) -> None:
    """The address of the book's folder leads to its first page; Jupyter Book's own redirect has no title or link."""
    root = f"{app.config.master_doc}.html"
    if app.builder.format == "html" and exception is None and root != "index.html":
        title = html.escape(app.config.html_title)
        Path(app.outdir, "index.html").write_text(
            f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
            f'<meta name="description" content="{title}">\n<link rel="icon" href="_static/favicon.svg">\n'
            f'<meta http-equiv="refresh" content="0; url={root}">\n<a href="{root}">{title}</a>\n</html>\n'
        )


def setup(app: Sphinx) -> dict:
    app.add_config_value("companion_looks", "", "html")
    app.connect("config-inited", configure, priority=100)
    app.connect("builder-inited", copy_mathjax)
    app.connect("env-get-outdated", outdated)
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("autodoc-process-docstring", link_equations)
    app.connect("doctree-read", mark_plots)
    app.connect("html-page-context", drop_live_code, priority=900)
    app.connect("html-page-context", open_in_colab, priority=900)
    app.connect("html-page-context", make_audible, priority=900)
    app.connect("build-finished", write_redirect, priority=900)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
