"""Rivals and controls, one file each. Importing this package registers them, so that `pc.methods()` lists them.

Every plan function has the arguments of a method in the core: `metric (B, N, C)`; `remove`, an int or with a mask
`(B,)` long, one number for each item; and `mask (B, N)`, True for real tokens, which come first. Its docstring says
what `remove` counts and which further context it reads.

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
