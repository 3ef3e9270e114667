"""The project's own files agree with one another."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import pitome_core

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
MAKEFILE = (ROOT / "Makefile").read_text()


def tracked(root: Path = ROOT) -> list[Path]:
    """Files in the repository, and those that the next commit could add. The test is skipped where git lists none."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "-coz", "--exclude-standard"], cwd=root, capture_output=True, text=True
        )
    except OSError as error:
        pytest.skip(f"git lists no files here: {error}")
    files = [path for name in listed.stdout.split("\0") if name and (path := root / name).is_file()]
    if listed.returncode or not files:  # no history, a clone of another user, a folder that the tree around it ignores
        pytest.skip(f"git lists no files here: {listed.stderr.strip() or 'this folder is ignored'}")
    return files


# --- environment.yml


def test_environment_declares_nothing_of_its_own():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert set(environment) == {"name", "channels", "dependencies"}
    python, pip, section = environment["dependencies"]
    assert pip == "pip" and set(section) == {"pip"}, "only python, pip and this package: the rest is in pyproject.toml"
    (itself,) = section["pip"]
    extras = re.fullmatch(r"-e \.\[([\w,-]+)\]", itself).group(1).split(",")
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    name, version = python.split("=")
    assert name == "python" and Version(version) in SpecifierSet(PROJECT["requires-python"])


# --- CITATION.cff


def citation() -> dict:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def citation_errors(document: dict) -> list[str]:
    schema = json.loads((ROOT / "tests/data/cff-1.2.0-schema.json").read_text())
    return [error.message for error in jsonschema.Draft7Validator(schema).iter_errors(document)]


def test_citation_is_valid():
    assert citation_errors(citation()) == []


def test_citation_schema_can_object():
    broken = citation()
    broken["preferred-citation"]["type"] = "conference talk"
    assert citation_errors(broken)


def test_citation_names_the_paper():
    paper = citation()["preferred-citation"]
    assert paper["type"] == "conference-paper" and paper["year"] == 2024
    assert [author["family-names"] for author in paper["authors"]] == [
        "Tran", "Nguyen", "Nguyen", "Nguyen", "Le", "Xie", "Sonntag", "Zou", "Nguyen", "Niepert",
    ]


# --- one version, one licence, one lock


def test_one_version():
    newest = re.search(r"^## \[?v?(\d[\w.]*)", (ROOT / "CHANGELOG.md").read_text(), re.M).group(1)
    versions = {
        "pyproject.toml": PROJECT["version"],
        "CITATION.cff": str(citation()["version"]),
        "CHANGELOG.md": newest,
        "pitome_core": pitome_core.__version__,
    }
    assert len(set(versions.values())) == 1, versions


def test_one_licence():
    licence = (ROOT / "LICENSE").read_text()
    assert licence.startswith("MIT License\n") and "The PiToMe companion authors" in licence
    assert PROJECT["license"] == citation()["license"] == "MIT"


def test_one_address():
    """Text and notebooks cannot ask pyproject.toml where the repository is; they agree with it instead."""
    address = PROJECT["urls"]["Repository"].removeprefix("https://")
    anyone = re.compile(r"github\.com/[\w.-]+/" + re.escape(address.split("/")[-1]))
    for path in tracked():
        if path.suffix in {".md", ".py", ".ipynb", ".yml", ".toml", ".cff"} and path.parent.name != "tests":
            assert set(anyone.findall(path.read_text())) <= {address}, path


def locked() -> dict[str, list[Version]]:
    """Package -> its versions in the lock: several where platforms or pythons differ."""
    found: dict[str, list[Version]] = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith((" ", "#")):
            requirement = Requirement(line)
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            found.setdefault(requirement.name.lower().replace("_", "-"), []).append(Version(pin.version))
    return found


def test_the_lock_covers_every_dependency():
    pins = locked()
    for extra, lines in {"": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        for requirement in map(Requirement, lines):
            name = requirement.name.lower().replace("_", "-")
            if name == PROJECT["name"]:
                assert requirement.extras <= set(PROJECT["optional-dependencies"]), requirement
                continue
            assert name in pins, f"{requirement} of extra {extra!r} is not in requirements.lock: run `make lock`"
            for version in pins[name]:
                assert requirement.specifier.contains(version, prereleases=True), (
                    f"{requirement} of extra {extra!r}, but the lock has {version}: run `make lock`"
                )


# --- Makefile and README


def test_help_lists_every_target():
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.M).group(1).split()
    rules = re.findall(r"^([a-z][a-z-]*):(?!=)", MAKEFILE, re.M)
    assert sorted(targets) == sorted(rules), "every rule is phony and every phony target is a rule"
    shown = subprocess.check_output(["make", "--no-print-directory", "help"], cwd=ROOT, text=True)
    listed = [line.split()[0] for line in shown.splitlines() if line.startswith("  ")]
    assert listed == targets


def test_readme_opens_with_a_picture_and_the_two_commands():
    readme = (ROOT / "README.md").read_text()
    first_block = re.search(r"^```[^\n]*\n(.*?)^```", readme, re.M | re.S)
    assert re.findall(r"^make ([a-z-]+)", first_block.group(1), re.M) == ["book", "test"]
    pictures = re.findall(r"!\[([^\]]+)\]\(([^)\s]+)\)|<img [^>]*src=\"([^\"]+)\"", readme[: first_block.start()])
    assert pictures, "one picture, with alt text, before the commands"
    for _, markdown, html in pictures:
        assert (ROOT / (markdown or html)).is_file()
    for target in re.findall(r"`make ([a-z-]+)", readme):
        assert re.search(rf"^{target}:", MAKEFILE, re.M), f"README names `make {target}`, the Makefile does not"


# --- nothing of the machine that wrote it

# Assembled, so that this file does not find itself.
ELSEWHERE = re.compile("|".join([
    r"(?<![\w.])/(?:roo" r"t|hom" r"e/\w+|wor" r"k|User" r"s/\w+)/[\w.]",
    "pyp" r"i\.org", "python" r"hosted\.", "npm" r"js\.(?:org|com)", "deb\\.deb" r"ian\.", "file" r":///[a-z]",
]))


def leaks(text: str) -> list[str]:
    return [match.group() for match in ELSEWHERE.finditer(text)]


@pytest.mark.parametrize("example", ["see /roo" "t/x", "'/hom" "e/me/x'", "https://pyp" "i.org/simple"])
def test_leaks_are_seen(example):
    assert leaks(example) and not leaks("https://example.org/home/page and ./work/x and the root of it")


def test_no_machine_paths_and_no_registry_hosts():
    found = {}
    for path in tracked():
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue  # pictures
        if hits := leaks(text):
            found[path.relative_to(ROOT).as_posix()] = sorted(set(hits))
    assert not found
