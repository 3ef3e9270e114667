"""The merge step of a layer as a few GPU kernels, for `pc.apply(..., fused=...)`. Optional: it needs Triton.

    kernels.py      the kernels, each with its contract
    launch.py       their launches for tensors of given shapes
    operators.py    operators of PyTorch made of launches, with their backward
    step.py         what they cover, and the merge step made of them
    choice.py       whether a patch merges by them

Importing this package imports none of them. `choice.py` imports Triton, which is not installed everywhere, only where
the kernels are wanted and can run.
"""
