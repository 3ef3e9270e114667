"""One file from the places where pip looks: its package indexes, its folders and pages of links.

`unearth` reads the places. pip's own settings say which ones, and with which proxy, certificates and passwords.
"""

from __future__ import annotations

import ast
import contextlib
import errno
import logging
import ssl
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import unearth
from packaging.utils import canonicalize_name
from unearth.auth import MultiDomainBasicAuth
from unearth.fetchers import PyPIClient

from pitome_core.experiments.assets.sources.common import run

PUBLIC_INDEX = unearth.PackageFinder().sources[0]["url"]  # where a finder looks that is given no place

# unearth logs a place without a page for a project as a warning, which Python would print. `download` returns it.
logging.getLogger("unearth").addHandler(logging.NullHandler())


def download(project: str, to: Path) -> list[str]:
    """Put the file called ``to.name`` of ``project`` at ``to``, from the first place of pip that has it.

    Returns why each place before did not give it; ``to`` does not exist where no place gave it. The file is not
    verified. No reason holds an address, because an address may hold a password.
    """
    options = pip_options()
    reasons = []
    places = [_address(place) for place in options.get("find-links", "").split()]
    indexes = []
    if options.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        reasons.append("pip is told to use no index")
    else:
        indexes = [options.get("index-url") or PUBLIC_INDEX, *options.get("extra-index-url", "").split()]
        places += [f"{_address(index).rstrip('/')}/{canonicalize_name(project)}/" for index in indexes]
    for place in places:  # one finder for each place, so that the next one is asked after a failure
        try:
            with _Client(options, indexes) as client:
                finder = unearth.PackageFinder(client, find_links=[place], ignore_compatibility=True)
                for candidate in finder.find_all_packages(project, allow_yanked=True):
                    if candidate.link.filename == to.name:
                        with client.get_stream(candidate.link.normalized) as response, open(to, "wb") as file:
                            response.raise_for_status()
                            file.writelines(response.iter_bytes())
                        return reasons
            reasons.append(f"an index has no {to.name}")
        except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, OSError) as error:
            to.unlink(missing_ok=True)
            if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise  # no other place helps against a full disk
            reasons.append(f"an index gave {type(error).__name__}")
    return reasons


def pip_options() -> dict[str, str]:
    """pip's settings for a download: environment variables before its section ``download`` before ``global``."""
    command = [sys.executable, "-m", "pip", "config", "list", "--no-input", "--disable-pip-version-check"]
    done = run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    sections: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    for line in done.stdout.splitlines():
        name, _, value = line.partition("=")
        section, _, option = name.rpartition(".")
        if section in sections:
            with contextlib.suppress(ValueError, SyntaxError):  # the second line of a value with a line break
                sections[section][option] = str(ast.literal_eval(value))
    return {**sections["global"], **sections["download"], **sections[":env:"]}


class _Client(PyPIClient):
    """A client with pip's proxy, certificates, passwords and timeout."""

    def __init__(self, options: Mapping[str, str], indexes: list[str]) -> None:
        super().__init__(
            verify=_certificates(options),
            auth=MultiDomainBasicAuth(prompting=False, index_urls=indexes),
            proxy=options.get("proxy") or None,
            timeout=float(options.get("timeout") or options.get("default-timeout") or 15),  # seconds; 15 as in pip
            follow_redirects=True,
        )

    def iter_secure_origins(self) -> list[tuple[str, str, str]]:
        """Every scheme, host and port: an index without TLS may be read, because the hash of the file is pinned.

        unearth's own option for that, ``trusted_hosts``, would go round the proxy.
        """
        return [("*", "*", "*")]


def _certificates(options: Mapping[str, str]) -> ssl.SSLContext | bool:
    """What pip is told to check a server with, and to show to it; True for the defaults."""
    if not options.get("cert") and not options.get("client-cert"):
        return True
    context = ssl.create_default_context(cafile=options.get("cert"))
    if client_certificate := options.get("client-cert"):
        context.load_cert_chain(client_certificate)
    return context


def _address(place: str) -> str:
    """A place that pip is told of, as an address; a folder of this machine becomes a ``file:`` address."""
    return place if len(urlsplit(place).scheme) > 1 else Path(place).expanduser().absolute().as_uri()
