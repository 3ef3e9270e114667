"""Create or complete the environment: `python3 tools/setup_env.py VENV`.

Runs before anything is installed, so: standard library only, and syntax that an old python3 can read far
enough to be told that it is too old.
"""
import hashlib
import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)


# Run by the environment's own python: exit 0 if it has every requirement that the lock names for this machine.
SATISFIED = """
import importlib.metadata, sys
from pip._vendor.packaging.requirements import Requirement
for line in open("requirements.lock"):
    if line.strip() and not line.startswith((" ", "#")):
        wanted = Requirement(line)
        if wanted.marker is None or wanted.marker.evaluate():
            try:
                if not wanted.specifier.contains(importlib.metadata.version(wanted.name), prereleases=True):
                    sys.exit(1)
            except importlib.metadata.PackageNotFoundError:
                sys.exit(1)
"""


def check_version(version, where):
    if tuple(version) < OLDEST:
        sys.exit(
            "python >= %d.%d is needed; %s is %d.%d. Name another one: make setup BASE_PYTHON=python3.12"
            % (OLDEST + (where,) + tuple(version))
        )


def fingerprint(python):
    """What the environment was made from; the clone's own path because the install is editable."""
    digest = hashlib.sha256((ROOT + "\0" + python).encode())
    for name in ("requirements.lock", "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def run(*command):
    code = subprocess.call(command, cwd=ROOT)
    if code:
        sys.exit(code)


def main(venv):
    check_version(sys.version_info[:2], sys.executable)
    venv = os.path.abspath(os.path.join(ROOT, os.path.expanduser(venv)))
    python = os.path.join(venv, "bin", "python")
    if not os.path.exists(python):
        print("creating " + venv, flush=True)
        try:
            import ensurepip  # noqa: F401  (Debian ships venv without it unless python3-venv is installed)
            import venv as _  # noqa: F401
        except ImportError:
            sys.exit("python's venv module is incomplete here; on Debian and Ubuntu: apt-get install python3-venv")
        run(sys.executable, "-m", "venv", venv)
    found = subprocess.check_output([python, "-c", "import sys; print(*sys.version_info[:2])"]).split()
    check_version([int(part) for part in found], python)

    stamp = os.path.join(venv, ".pitome-setup")
    want = fingerprint(python)
    have = ""
    if os.path.exists(stamp):
        with open(stamp) as file:
            have = file.read()
    if have != want:
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install"]
        if subprocess.call([python, "-c", SATISFIED], cwd=ROOT):
            print("installing the locked requirements (torch is large: minutes on a slow line)", flush=True)
            run(*(pip + ["-r", "requirements.lock"]))
        else:
            print(venv + " already has the locked requirements", flush=True)
        # The build backend is in the lock, so nothing is fetched here.
        run(*(pip + ["--quiet", "--no-deps", "--no-build-isolation", "-e", "."]))
    run(python, "-m", "pitome_core.experiments.assets", "fetch")
    if have != want:  # last, so that an interrupted run starts over
        with open(stamp, "w") as file:
            file.write(want)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ".venv")
