"""Rivals and controls, one file each. Importing this package registers them, so that `pc.methods()` lists them.

The control `lower_resolution` is not registered, because it is no plan but a smaller model. Import it from its file.
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
