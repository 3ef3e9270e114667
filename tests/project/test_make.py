"""The Makefile where paths have spaces, and a set-up that is killed, or runs twice at once."""

from __future__ import annotations

import errno
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import toy_clone
from toy_clone import make

sys.path[:0] = [str(toy_clone.ROOT / "book" / "_ext"), str(toy_clone.ROOT / "tools"), str(Path(__file__).parent)]
import companion  # noqa: E402
import setup_env  # noqa: E402
import test_project  # noqa: E402

MAKEFILE = (toy_clone.ROOT / "Makefile").read_text()
NAME, ENVIRONMENT = "with space ü", "it's my env"

# In place of an interpreter: notes how it was called, and makes of a folder what an environment looks like.
FAKE = r"""#!/bin/bash
{ printf '%s\0' "$0" "$@"; printf '\n'; } >> "$CALLS"
case "$1 $2" in
  "tools/setup_env.py "*) folder=$2 ;;
  "-m venv") folder=$3 ;;
  *) exit 0 ;;
esac
mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" && cp "$0" "$folder/bin/uv"
"""


@pytest.fixture
def clone(tmp_path) -> Path:
    root = tmp_path / NAME
    toy_clone.write_clone(root)
    return root


# ------------------------------------------------------------------------------------------------------------ spaces
@pytest.fixture
def fake(clone) -> Path:
    """A fake interpreter in a folder with a space and a quote; no browser is looked for."""
    path = clone.parent / "the interpreter's folder" / "python"
    path.parent.mkdir()
    path.write_text(FAKE)
    path.chmod(0o755)
    (clone / "tools" / "ensure_browser.sh").write_text("#!/bin/bash\n")
    return path


TARGETS = sorted(re.findall(r"^([a-z][a-z-]*):.*##", MAKEFILE, re.M))
WITHOUT_PYTHON = {"help", "clean", "browser"}


def calls(path: Path) -> list[list[str]]:
    """The calls of fake interpreters: the path of each, and its arguments."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split("\0")[:-1] for line in lines]


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("where", ["PYTHON", "VENV", "absolute VENV"])
def test_every_target_finds_its_interpreter(clone, fake, target, where):
    """Whatever the paths of clone, environment and interpreter are, a recipe calls that interpreter and no other."""
    venv = clone / ENVIRONMENT if where != "absolute VENV" else clone.parent / "an env" / ENVIRONMENT
    given = {"PYTHON": f"PYTHON={fake}", "VENV": f"VENV={ENVIRONMENT}", "absolute VENV": f"VENV={venv}"}[where]
    log = clone.parent / "calls"
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)  # for `make spelling`
    if where != "PYTHON" and target == "gpu":  # it sets nothing up
        make(clone, "setup", given, BASE_PYTHON=str(fake), CALLS=str(log))
    printed = make(clone, target, given, BASE_PYTHON=str(fake), CALLS=str(log))
    assert not re.search("not found|No such file|cannot", printed), printed
    expected = fake if where == "PYTHON" else venv / "bin" / "python"
    made = calls(log)
    settings_up = [call[1:] for call in made if call[1:2] == ["tools/setup_env.py"]]
    others = [call[0] for call in made if call[1:2] != ["tools/setup_env.py"]]
    if target in WITHOUT_PYTHON:
        assert made == []
        return
    if target == "lock":
        assert others[0] == str(fake) and {Path(call).parent.name for call in others[1:]} == {"bin"}
        return
    if target == "open" and where != "PYTHON":  # where nothing is set up, any interpreter serves pages
        assert set(others) == {str(fake)}
        return
    assert all(call == ["tools/setup_env.py", str(venv)] for call in settings_up)
    assert bool(settings_up) == (where != "PYTHON")
    assert target == "setup" or others and set(others) == {str(expected)}, made


def test_a_recipe_without_quotes_would_be_noticed(clone, fake):
    makefile = clone / "Makefile"
    makefile.write_text(makefile.read_text().replace('PY := "$$PITOME_PYTHON"', "PY := $(PITOME_PYTHON)"))
    with pytest.raises(AssertionError):
        make(clone, "pairing", f"PYTHON={fake.parent.with_name('a b') / 'python'}", CALLS=str(clone / "calls"))


def test_the_environment_may_stand_in_the_home_folder(clone, fake):
    """A shell may leave the tilde to make."""
    home, log = clone.parent / "a home", clone.parent / "calls"
    make(clone, "pairing", "VENV=~/some env", HOME=str(home), BASE_PYTHON=str(fake), CALLS=str(log))
    assert {call[0] for call in calls(log)} == {str(fake), str(home / "some env" / "bin" / "python")}


@pytest.mark.slow
def test_a_book_is_built_where_paths_have_spaces(clone):
    """The real thing, small: set-up into such an environment, then a notebook that runs in it; likewise by PYTHON."""
    toy_clone.write_book(clone)
    toy_clone.write_notebook(clone, "import pitome_core, sys\nprint(sys.executable, pitome_core.__file__)")
    venv = clone / ENVIRONMENT
    make(clone, "setup", f"VENV={ENVIRONMENT}")
    toy_clone.share_packages(venv)
    python = venv / "bin" / "python"
    for given, pages in ((f"VENV={ENVIRONMENT}", "_build"), (f"PYTHON={python}", "_build/test/_build")):
        printed = make(clone, "book" if pages == "_build" else "test-book", given)
        page = (clone / pages / "html" / "notebooks" / "cells.html").read_text()
        shown = page.replace("&#39;", "'").replace("&#x27;", "'")
        assert f"{python} {clone / 'pitome_core' / '__init__.py'}" in re.sub(r"<[^>]+>", "", shown), printed


# ----------------------------------------------------------------------------------------------------------- git
def without_history(clone: Path, monkeypatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(clone.parent))


def of_another_user(clone: Path, monkeypatch) -> None:
    """What git's own tests set to be told of another owner."""
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")


def ignored(clone: Path, monkeypatch) -> None:
    subprocess.run(["git", "init", "-q"], cwd=clone.parent, check=True)
    (clone.parent / ".gitignore").write_text("*\n")


def without_git(clone: Path, monkeypatch) -> None:
    """A PATH with what the recipe needs, less git."""
    folder = clone.parent / "programs"
    folder.mkdir()
    for name in ("make", "bash", "env", "mktemp", "rm", "xargs"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))


@pytest.mark.parametrize("prepare", [without_history, of_another_user, ignored, without_git])
def test_where_git_lists_no_files_their_checks_are_skipped(clone, fake, prepare, monkeypatch):
    """`make spelling` says why and succeeds; the tests of the tracked files are skipped with the same reason."""
    prepare(clone, monkeypatch)
    printed = make(clone, "spelling", f"PYTHON={fake}", CALLS=str(clone.parent / "calls"))
    assert re.search("^SKIPPED: the spelling is not checked, .* git lists no files here: .", printed, re.M), printed
    assert calls(clone.parent / "calls") == []
    with pytest.raises(pytest.skip.Exception, match="git lists no files here: ."):
        test_project.tracked(clone)
    assert companion.repository_url(clone) == "https://github.com/OWNER/toy"


def test_a_misspelt_word_fails(clone):
    """In a clone with a history; what git ignores is not read."""
    subprocess.run(["git", "init", "-q"], cwd=clone, check=True)
    (clone / ".gitignore").write_text("private.md\n")
    misspelt = "t" "eh word"
    (clone / "private.md").write_text(misspelt)
    assert "spelling: ok" in make(clone, "spelling", f"PYTHON={sys.executable}")
    (clone / "new.md").write_text(misspelt)
    printed = make(clone, "spelling", f"PYTHON={sys.executable}", check=False)
    assert "new.md:1: t" "eh ==> the" in printed and "spelling: FAILED" in printed and "private" not in printed


# ------------------------------------------------------------------------------------------- a set-up that is killed
CHECK = "import pip._internal, toy_a, toy_b, pitome_core; print(toy_a.value, toy_b.value, pitome_core.answer)"


def set_up(clone: Path, kill_at: str = "", by: int = signal.SIGKILL, **more: str) -> subprocess.Popen:
    """Start a set-up in a group of its own; with `kill_at`, every python in it watches for that text."""
    killer = {"PYTHONPATH": str(clone / "killer"), "KILL_AT": kill_at, "KILL_BY": str(int(by))} if kill_at else {}
    return subprocess.Popen(
        [sys.executable, "tools/setup_env.py", ENVIRONMENT], cwd=clone, stdout=subprocess.PIPE, text=True,
        stderr=subprocess.STDOUT, env=toy_clone.surroundings(clone, **killer, **more), start_new_session=True,
    )


def finish(process: subprocess.Popen) -> tuple[int, str]:
    printed, _ = process.communicate(timeout=120)
    return process.returncode, printed


def state(clone: Path) -> str:
    path = clone / ENVIRONMENT / ".pitome-setup"
    return path.read_text() if path.exists() else ""


def check_it_works(clone: Path, printed: str = "") -> None:
    """pip, the locked packages and the clone's own package are there, and the set-up says that it is done."""
    done = subprocess.run([clone / ENVIRONMENT / "bin" / "python", "-I", "-c", CHECK], capture_output=True, text=True,
                          cwd=clone.parent)
    assert done.stdout == "1 1 1\n", printed + done.stderr
    assert re.fullmatch("[0-9a-f]{64}", state(clone))


# In the order of a set-up: each is killed at its stage, and starts from what the one before it left.
STAGES = {
    "no mark is written yet": ".pitome-setup-new",
    "the folder has one file": "pyvenv.cfg",
    "python is there, pip is not": "'-m', 'ensurepip'",
    "before the locked packages": "'-r', 'requirements.lock'",
    "a package is half installed": "site-packages/toy_b.py",
    "before the clone's own package": "'--no-build-isolation'",
    "the clone's own package is half installed": "site-packages/toy.pth",
    "before the assets": "'pitome_core.experiments.assets'",
    "at the assets": "fetched",
}


@pytest.mark.slow
def test_a_set_up_that_is_killed_is_finished_by_the_next(clone):
    """Killed at every stage in turn, it never says that it is done, and the last one makes a complete environment."""
    for name, text in STAGES.items():
        code, printed = finish(set_up(clone, text))
        assert code == -signal.SIGKILL, f"{name}: {printed}"
        assert len(state(clone)) < 64, name
        if name == "python is there, pip is not":  # and another one dies while pip is written
            (packages,) = (clone / ENVIRONMENT).glob("lib/python*/site-packages")
            for file, text in {"pip/__init__.py": "", "pip-99.dist-info/METADATA": "Name: pip\nVersion: 99\n"}.items():
                (packages / file).parent.mkdir()
                (packages / file).write_text(text)
    code, printed = finish(set_up(clone))
    assert code == 0, printed
    check_it_works(clone, printed)
    (clone / ENVIRONMENT / ".pitome-lock").unlink()
    assert finish(set_up(clone)) == (0, "assets are there\n"), "nothing is left to do"
    assert not (clone / ENVIRONMENT / ".pitome-lock").exists(), "what is done may be read-only"


@pytest.mark.slow
def test_a_set_up_may_be_interrupted(clone):
    """Ctrl-C reaches all processes: a line instead of a traceback, and the next set-up goes on."""
    code, printed = finish(set_up(clone, "'-m', 'ensurepip'", signal.SIGINT))
    assert code == 1 and printed.splitlines()[-1].startswith("interrupted; the next `make setup`"), printed
    code, printed = finish(set_up(clone))
    assert code == 0, printed
    check_it_works(clone)


@pytest.mark.slow
def test_two_set_ups_at_once_make_one_environment(clone):
    """The second waits for the first, and has nothing left to do."""
    both = [finish(process) for process in [set_up(clone), set_up(clone)]]
    printed = "".join(text for _, text in both)
    assert [code for code, _ in both] == [0, 0], printed
    assert printed.count("creating ") == printed.count("waiting for another set-up of ") == 1
    check_it_works(clone)
    # Killed alone, a set-up leaves a process that goes on writing: the next one waits for that too.
    (clone / ENVIRONMENT / ".pitome-setup").write_text("of another lock")
    (clone / "fetched").unlink()
    killed = set_up(clone, TOY_ASSETS="orphan")
    killed.wait()
    code, printed = finish(set_up(clone))
    assert (killed.returncode, code) == (-signal.SIGKILL, 0) and "waiting for another set-up of " in printed
    assert (clone / "fetched").read_text() == "orphan plain "
    killed.stdout.close()


def test_a_file_system_without_locks_is_told(tmp_path, monkeypatch, capsys):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(setup_env.fcntl, "flock", refuse)
    os.close(setup_env.hold(str(tmp_path)))
    assert "No locks available): run one set-up at a time" in capsys.readouterr().out


@pytest.mark.slow
def test_an_environment_of_somebody_else_is_completed(clone):
    """Without pip, as an earlier set-up or another tool left it: pip comes, and nothing that was there goes."""
    venv = clone / ENVIRONMENT
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
    (venv / "notes.txt").write_text("mine")
    (packages,) = venv.glob("lib/python*/site-packages")
    (packages / "mine-1.dist-info").mkdir()  # nobody noted who installed it
    code, printed = finish(set_up(clone, "site-packages/toy_b.py"))
    assert code == -signal.SIGKILL
    code, printed = finish(set_up(clone))
    assert code == 0, printed
    check_it_works(clone)
    assert (venv / "notes.txt").read_text() == "mine" and (packages / "mine-1.dist-info").is_dir()


def test_what_is_no_environment_is_left_alone(clone):
    """A folder of other files, and a python that does not run: the reason and the remedy, and nothing is removed."""
    venv = clone / ENVIRONMENT
    venv.mkdir()
    (venv / "thesis.tex").write_text("mine")
    code, printed = finish(set_up(clone))
    assert code == 1 and re.search(r"holds other files \(thesis.tex .*VENV=path", printed), printed
    (venv / "bin").mkdir()
    (venv / "bin" / "python").symlink_to("a python that is gone")
    code, printed = finish(set_up(clone))
    assert code == 1 and re.search("does not run .*remove the folder", printed), printed
    assert (venv / "thesis.tex").read_text() == "mine"
