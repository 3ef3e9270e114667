"""What the tests and the notebooks under test share: kernels that nbval starts inherit these settings."""

import os

os.environ.setdefault("PITOME_PROFILE", "smoke")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two workers share two cores
