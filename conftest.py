"""What the tests and the notebooks under test share: kernels that nbval starts inherit these settings."""

import os

os.environ.setdefault("PITOME_PROFILE", "smoke")
# With a commit given, nobody asks git: scoring a test set from a tree with changes would be refused otherwise.
os.environ.setdefault("PITOME_COMMIT", "of-the-tests")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores
# Without a graphics card the fused kernels run in Triton's interpreter. Triton reads this when it is imported.
if not os.path.exists("/dev/nvidiactl"):
    os.environ.setdefault("TRITON_INTERPRET", "1")
