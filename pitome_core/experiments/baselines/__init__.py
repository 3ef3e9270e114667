"""Rivals and controls, one file each. Importing this package registers them with `pc.methods()`.

The control `lower_resolution` is no plan but a smaller model: import it from its own file.
"""

from . import (  # noqa: F401
    atc,
    crossget,
    dct,
    diffrate,
    evit,
    grid_pool,
    mctf,
    random_merge,
    random_prune,
    tofu,
    topk_attention,
)
