"""The command `pitome`: diagnose a model on a folder of pictures, count it, draw what merges in a picture.

Nothing of the package imports this folder. timm, transformers, open_clip and Pillow are imported where they are used.
"""

from .command import main

__all__ = ["main"]
