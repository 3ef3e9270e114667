"""The experiments' command line in processes of its own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# --multi_gpu is accelerate's word for several processes on one machine; PITOME_DEVICE puts them on the CPU.
TWO = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1",
       "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
EXPERIMENTS = ("-m", "pitome_core.experiments")


def command(words: Sequence[str], launcher: Sequence[str] = (), program: Sequence[str] = EXPERIMENTS) -> dict[str, Any]:
    """Arguments of `subprocess` for ``python -m pitome_core.experiments``, or another program, with these words."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    return dict(
        args=[sys.executable, *launcher, *program, *words],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}, cwd=root, text=True,
    )


def side_by_side(words: Sequence[str], program: Sequence[str]) -> tuple[list[int], str]:
    """Exit statuses and stderr of two processes that share the work and have no launcher, which would add its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    how = command(words, program=program)
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [
        subprocess.Popen(**how | {"env": how["env"] | world | {"RANK": rank, "LOCAL_RANK": rank}},
                         stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=240)[1] for process in both]
    return [process.returncode for process in both], "".join(said)


def in_two_processes(words: Sequence[str], program: Sequence[str] = EXPERIMENTS) -> str:
    """What the command prints when two processes share its work; it has to succeed."""
    done = subprocess.run(**command(words, TWO, program), capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
