"""Rivals and controls, one file each. Importing this package registers them with `pc.methods()`."""

from . import random_merge, random_prune  # noqa: F401
