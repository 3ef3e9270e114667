"""Create or complete the environment: `python3 tools/setup_env.py VENV`.

Runs before anything is installed, so: standard library only, and syntax that an old python3 can read far
enough to be told that it is too old.

A set-up may be killed at any time, and the next one finishes its work. The file `.pitome-setup` in the environment
says how far the last one came, and it says that a stage is done only after the stage:

    creating        the environment was begun here, so whatever is in it is ours: it is made anew
    installing      packages that are half installed are installed again
    a fingerprint   of what the environment was made from: done

A folder without that file belongs to somebody else. It is completed, and nothing in it is removed. Two set-ups of one
environment run one after the other, because each holds a lock on it.
"""
import fcntl
import hashlib
import os
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
OLDEST = (3, 11)
STATE, LOCK = ".pitome-setup", ".pitome-lock"
CREATING, INSTALLING = "creating", "installing"


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

# Run by the environment's own python after an interrupted installation; the argument is the file that noted its start.
# Installers write INSTALLER after the files of a package. A package of that installation without it is half installed,
# but its other metadata make pip take it for installed: they go, and pip installs it again.
FORGET_HALVES = """
import pathlib, shutil, sys, sysconfig
start = pathlib.Path(sys.argv[1]).stat().st_mtime
for place in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
    for metadata in pathlib.Path(place).glob("*.dist-info"):
        if not (metadata / "INSTALLER").exists() and metadata.stat().st_mtime >= start:
            print("half installed, and installed again: " + metadata.name, flush=True)
            shutil.rmtree(metadata)
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


def read_state(venv):
    try:
        with open(os.path.join(venv, STATE)) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write_state(venv, state):
    """In one step, so that a killed set-up leaves the old state or the new one."""
    path = os.path.join(venv, STATE)
    with open(path + "-new", "w") as file:
        file.write(state)
    os.replace(path + "-new", path)


def hold(venv):
    """Open and lock the lock file of an environment, waiting while another set-up holds it.

    The stages inherit the lock. If this process alone is killed, its pip goes on writing, and it holds the lock for as
    long.
    """
    os.makedirs(venv, exist_ok=True)
    lock = os.open(os.path.join(venv, LOCK), os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("waiting for another set-up of " + venv, flush=True)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError as error:
        print("the file system of %s has no locks (%s): run one set-up at a time" % (venv, error), flush=True)
    return lock


def call(lock, *command, **options):
    return subprocess.call(command, cwd=ROOT, pass_fds=[] if lock is None else [lock], **options)


def run(lock, *command):
    code = call(lock, *command)
    if code:
        sys.exit(code)


def create(venv, lock):
    """Make the environment in an empty folder, or anew where an earlier set-up was killed while it made it."""
    try:
        import ensurepip  # noqa: F401  (Debian ships venv without it unless python3-venv is installed)
        import venv as _  # noqa: F401
    except ImportError:
        sys.exit("python's venv module is incomplete here; on Debian and Ubuntu: apt-get install python3-venv")
    content = [name for name in os.listdir(venv) if name not in (LOCK, STATE, STATE + "-new")]
    if content and read_state(venv) == CREATING:
        print(venv + " is half made; it is made anew", flush=True)
        for name in content:
            path = os.path.join(venv, name)
            if os.path.isdir(path) and not os.path.islink(path):
                shutil.rmtree(path)
            else:
                os.remove(path)
    elif content and "pyvenv.cfg" not in content:
        sys.exit(
            "%s holds other files (%s and so on) and no environment: name a folder that is empty or does not exist, "
            "make setup VENV=path" % (venv, min(content))
        )
    print("creating " + venv, flush=True)
    if not content or read_state(venv) == CREATING:
        write_state(venv, CREATING)
    run(lock, sys.executable, "-m", "venv", venv)
    write_state(venv, INSTALLING)


def has_pip(python, lock):
    return not call(lock, python, "-m", "pip", "--version", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def install(venv, python, lock):
    """The locked requirements and this package, into an environment that may have any part of them."""
    if not has_pip(python, lock):
        call(lock, python, "-m", "ensurepip", "--upgrade", "--default-pip")
        if not has_pip(python, lock):
            sys.exit("%s has no pip that runs, and `-m ensurepip` does not mend it: remove the folder %s, or name "
                     "another, make setup VENV=path" % (python, venv))
    if read_state(venv) == INSTALLING:
        run(lock, python, "-c", FORGET_HALVES, os.path.join(venv, STATE))
    write_state(venv, INSTALLING)
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install"]
    if call(lock, python, "-c", SATISFIED):
        print("installing the locked requirements (torch is large: minutes on a slow line)", flush=True)
        run(lock, *(pip + ["-r", "requirements.lock"]))
    else:
        print(venv + " already has the locked requirements", flush=True)
    # The build backend is in the lock, so nothing is fetched here.
    run(lock, *(pip + ["--quiet", "--no-deps", "--no-build-isolation", "-e", "."]))


def main(venv):
    check_version(sys.version_info[:2], sys.executable)
    venv = os.path.abspath(os.path.join(ROOT, os.path.expanduser(venv)))
    python = os.path.join(venv, "bin", "python")
    want = fingerprint(python)
    lock = None
    if read_state(venv) != want or not os.path.lexists(python):
        lock = hold(venv)
        if read_state(venv) == CREATING or not os.path.lexists(python):
            create(venv, lock)
    try:
        found = subprocess.check_output([python, "-c", "import sys; print(*sys.version_info[:2])"]).split()
    except (OSError, subprocess.CalledProcessError) as error:
        sys.exit("%s does not run (%s): remove the folder %s, or name another, make setup VENV=path"
                 % (python, error, venv))
    check_version([int(part) for part in found], python)
    done = read_state(venv) == want
    if not done:
        install(venv, python, lock)
    run(lock, python, "-m", "pitome_core.experiments.assets", "fetch")
    if not done:
        write_state(venv, want)


if __name__ == "__main__":
    try:
        main(sys.argv[1] if len(sys.argv) > 1 else ".venv")
    except KeyboardInterrupt:
        sys.exit("interrupted; the next `make setup` goes on from here")
