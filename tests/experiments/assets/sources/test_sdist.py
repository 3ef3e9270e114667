"""Source archives, from local folders and from a package index that this test serves. Their setup.py never runs."""

import http.server
import os
import shutil
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from toy_packages import asset_of, tar_of, zip_of

from pitome_core.experiments import assets
from pitome_core.experiments.assets import store

SENTENCES = {"data/good.txt": b"good\tfine\n" * 300, "data/raw/bad.txt": b"bad", "data/odd.txt": b"odd"}
INNER = "ToySentences-0.5/more/data.tar.gz"


@pytest.fixture
def toy(only, pip_sees, tmp_path):
    """A source archive with the data in a tar archive inside it; pip is told of the folder that it is in."""
    places = tmp_path / "places"
    places.mkdir()
    setup = f"open({str(tmp_path / 'ran')!r}, 'w')"
    content = {"ToySentences-0.5/setup.py": setup, INNER: tar_of(SENTENCES, "w:gz")}
    package = zip_of(places / "ToySentences-0.5.zip", content)
    pip_sees(tmp_path / "nowhere", places.as_uri())
    members = {"data/good.txt": "good.txt", "data/raw/bad.txt": "bad.txt"}
    fields = dict(kind="sdist", package="ToySentences", version="0.5", inner=INNER, members=members)
    yield only(asset_of(package, **fields))
    assert not (tmp_path / "ran").exists()


def assert_sentences(folder: Path):
    assert {p.name for p in folder.iterdir()} == {"good.txt", "bad.txt", assets.MANIFEST}
    assert (folder / "good.txt").read_bytes() == SENTENCES["data/good.txt"]
    assert (folder / "bad.txt").read_bytes() == SENTENCES["data/raw/bad.txt"]
    assert assets.state("toy") == "ready"
    assert {p.name for p in folder.parent.iterdir()} == {"toy-0.5", ".toy-0.5.lock"}


def test_a_source_archive_is_data(toy, capfd, monkeypatch):
    assert_sentences(assets.fetch("toy"))
    assert capfd.readouterr() == ("", "")
    monkeypatch.setitem(store.FILL, "sdist", None)  # would fail if it were used
    assert_sentences(assets.fetch("toy"))


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_without_an_archive_inside(toy, only, tmp_path, kind):
    package = tmp_path / "places" / toy.filename
    if kind == "tar.gz":
        package = package.with_name("ToySentences-0.5.tar.gz")
        package.write_bytes(tar_of({INNER: tar_of(SENTENCES)}, "w:gz"))
    made = asset_of(package)
    only(toy, inner="", members={INNER: "data.tar"}, filename=made.filename, sha256=made.sha256)
    with tarfile.open(assets.fetch("toy") / "data.tar") as tree:
        assert tree.getnames() == list(SENTENCES)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"members": {"data/good.txt": "good.txt", "data/none.txt": "none.txt"}}, "holds no data/none.txt: the table"),
        ({"members": {"data/raw": "raw"}}, "ToySentences-0.5.zip holds no data/raw: the table"),
        ({"inner": "ToySentences-0.5/less/data.tar.gz"}, "holds no ToySentences-0.5/less/data.tar.gz: the table"),
        ({"sha256": "0" * 64}, f"ToySentences-0.5.zip has sha256 [0-9a-f]* where {'0' * 64} is pinned: "),
    ],
)
def test_a_wrong_table_is_named(toy, only, changes, message):
    only(toy, **changes)
    with pytest.raises(assets.AssetError, match=message):
        assets.fetch("toy")
    assert assets.state("toy") == "missing" and not list(assets.path("toy").parent.glob(".toy-0.5.tmp-*"))


def test_one_that_cannot_be_had(toy, monkeypatch):
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(assets.AssetError) as caught:
        assets.fetch("toy")
    message = str(caught.value)
    for part in ("ToySentences-0.5.zip", "pip is told to use no index", "assets fetch toy", "PITOME_CACHE"):
        assert part in message
    assert "\n" not in message and ". " not in message


@pytest.fixture
def index(toy, tmp_path, monkeypatch):
    """A package index that has the archive and that pip is told to use; the requests that it got."""
    page = f'<!DOCTYPE html><a href="../../files/{toy.filename}#sha256={toy.sha256}">{toy.filename}</a>'
    answers = {
        "/simple/toysentences/": ("text/html", page.encode()),
        f"/files/{toy.filename}": ("application/zip", (tmp_path / "places" / toy.filename).read_bytes()),
    }
    requests = []

    class Index(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers.get("Authorization")))
            kind, content = answers.get(self.path, ("text/plain", b"no such page"))
            if self.path.startswith("/moved/"):
                self.send_response(302)
                self.send_header("Location", self.path.removeprefix("/moved"))
            else:
                self.send_response(200 if self.path in answers else 404)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            pass

    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("PIP_INDEX_URL", f"http://reader:secret@127.0.0.1:{server.server_port}/simple")
        yield requests
        server.shutdown()
        thread.join()


def test_the_index_of_pip_is_asked(index, toy, capfd):
    assert_sentences(assets.fetch("toy"))
    assert [path for path, _ in index] == ["/simple/toysentences/", f"/files/{toy.filename}"]
    assert all(word == "Basic cmVhZGVyOnNlY3JldA==" for _, word in index)  # reader:secret
    assert capfd.readouterr() == ("", "")


def test_an_index_that_has_moved(index, monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", os.environ["PIP_INDEX_URL"].replace("/simple", "/moved/simple"))
    assert_sentences(assets.fetch("toy"))


def test_a_password_may_be_in_the_netrc_file(index, tmp_path, monkeypatch):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login reader password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("PIP_INDEX_URL", os.environ["PIP_INDEX_URL"].replace("reader:secret@", ""))
    assert_sentences(assets.fetch("toy"))
    assert {word for _, word in index} == {"Basic cmVhZGVyOnNlY3JldA=="}


def test_a_second_index_is_asked_after_the_first(index, monkeypatch, capfd):
    good = os.environ["PIP_INDEX_URL"]
    for bad in (good.replace("/simple", "/nothing"), "http://reader:secret@127.0.0.1:9/simple"):
        monkeypatch.setenv("PIP_INDEX_URL", bad)
        monkeypatch.setenv("PIP_EXTRA_INDEX_URL", good)
        assert_sentences(assets.fetch("toy"))
        shutil.rmtree(assets.path("toy"))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("layout", ["files beside one another", "a page that names a file elsewhere"])
def test_an_index_may_be_a_folder_of_folders(index, toy, tmp_path, monkeypatch, layout):
    project = tmp_path / "folders" / "toysentences"
    if layout == "files beside one another":
        shutil.copytree(tmp_path / "places", project)
    else:
        project.mkdir(parents=True)
        (project / "index.html").write_text(f'<a href="../../places/{toy.filename}">{toy.filename}</a>')
    monkeypatch.setenv("PIP_INDEX_URL", os.environ["PIP_INDEX_URL"].replace("/simple", "/nothing"))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", project.parent.as_uri())
    assert_sentences(assets.fetch("toy"))
    assert [path for path, _ in index] == ["/nothing/toysentences/"]


def test_the_proxy_of_pip_is_asked(index, toy, monkeypatch):
    server = os.environ["PIP_INDEX_URL"].removesuffix("/simple")
    monkeypatch.setenv("PIP_PROXY", server)
    monkeypatch.setenv("PIP_INDEX_URL", "http://index.invalid/simple")
    with pytest.raises(assets.AssetError, match=f"an index has no {toy.filename}"):
        assets.fetch("toy")
    assert [path for path, _ in index] == ["http://index.invalid/simple/toysentences/"]


@pytest.mark.parametrize(
    "variable, value, message",
    [
        ("PIP_INDEX_URL", "http://reader:secret@127.0.0.1:9/simple", "an index gave ConnectError"),
        ("PIP_PROXY", "reader:secret@127.0.0.1:9", "an index gave "),
        ("PIP_CERT", "/no/such/secret", "an index gave FileNotFoundError"),
    ],
)
def test_an_index_that_cannot_be_reached(index, monkeypatch, variable, value, message):
    monkeypatch.setenv(variable, value)
    with pytest.raises(assets.AssetError, match=message) as caught:
        assets.fetch("toy")
    assert "secret" not in str(caught.value)


def test_an_index_that_has_not_got_it(index, toy, only):
    for changes in ({"filename": "ToySentences-0.6.zip"}, {"package": "others"}):
        changed = only(toy, **changes)
        with pytest.raises(assets.AssetError, match=f"an index has no {changed.filename}"):
            assets.fetch("toy")


def test_without_the_library_that_reads_indexes(toy, monkeypatch):
    monkeypatch.delitem(sys.modules, "pitome_core.experiments.assets.sources.package_index", raising=False)
    monkeypatch.delattr("pitome_core.experiments.assets.sources.package_index", raising=False)
    monkeypatch.setitem(sys.modules, "unearth", None)
    with pytest.raises(assets.AssetError, match=r"unearth is missing: pip install 'pitome-core\[experiments\]'"):
        assets.fetch("toy")
