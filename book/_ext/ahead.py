"""In the smoke tier notebooks run two at a time, before MyST-NB reads them one by one.

MyST-NB then finds their outputs in its cache. A notebook that fails is left out: MyST-NB runs it again, and reports it.
In the other tiers chapters measure times, which must not be shared with another chapter.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nbformat
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from sphinx.application import Sphinx
from sphinx.util import logging

log = logging.getLogger(__name__)

AT_ONCE = 2


def _unknown(cache, paths: Iterator[Path]) -> Iterator[tuple[Path, nbformat.NotebookNode]]:
    """The notebooks whose cells the cache has no outputs of."""
    for path in paths:
        notebook = nbformat.read(path, as_version=4)
        try:
            cache.match_cache_notebook(notebook)
        except KeyError:
            yield path, notebook


def _ran(notebook: nbformat.NotebookNode, folder: Path, timeout: int) -> bool:
    """Run a notebook in its folder, on its share of the cores; False if a cell failed."""
    threads = str(max(1, (os.cpu_count() or 1) // AT_ONCE))
    # Times in the cells' metadata would make it another notebook for the cache.
    where = {"metadata": {"path": str(folder)}}
    client = NotebookClient(notebook, timeout=timeout, record_timing=False, resources=where)
    try:
        client.execute(env=os.environ | {"OMP_NUM_THREADS": threads})
    except (CellExecutionError, CellTimeoutError):
        return False
    return True


def run_ahead(app: Sphinx, env, docnames: list[str]) -> None:
    if os.environ.get("PITOME_PROFILE") != "smoke" or app.config.nb_execution_mode != "cache":
        return
    cache = get_cache(app.config.nb_execution_cache_path)
    paths = (Path(env.doc2path(name)) for name in docnames)
    todo = list(_unknown(cache, (path for path in paths if path.suffix == ".ipynb")))
    if todo:
        log.info("running %d notebooks, %d at a time", len(todo), AT_ONCE)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        done = list(pool.map(lambda one: _ran(one[1], one[0].parent, app.config.nb_execution_timeout), todo))
    for (path, notebook), good in zip(todo, done, strict=True):
        if good:
            bundle = CacheBundleIn(notebook, str(path), data={})
            cache.cache_notebook_bundle(bundle, check_validity=False, overwrite=True)


def setup(app: Sphinx) -> dict:
    app.connect("env-before-read-docs", run_ahead)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
