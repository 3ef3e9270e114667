"""Chromium without a window, for the tests of the pages and for the tools that look at them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

WIDE, PHONE = (1280, 1600), (390, 844)
FLAGS = (
    "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking "
    "disable-component-update disable-sync disable-dev-shm-usage hide-scrollbars"
).split()


@contextmanager
def running(*flags: str) -> Iterator[webdriver.Chrome]:
    """A browser, closed behind the block with all that it stored. `FileNotFoundError` where there is none."""
    binary = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    driver = shutil.which("chromedriver")
    if not binary or not driver:
        raise FileNotFoundError("chromium and chromedriver are not here: `make browser` says how to get them")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for flag in (*FLAGS, f"user-data-dir={profile}", *flags):
            options.add_argument("--" + flag)
        chrome = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
        try:
            yield chrome
        finally:
            chrome.quit()


def open_page(browser: webdriver.Chrome, url: str, size: tuple[int, int] = WIDE, theme: str = "light") -> None:
    """Load a page at that window size and in that theme; return when its scripts and its mathematics are done."""
    width, height = size  # through the protocol: a window cannot be made as narrow as a phone
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == PHONE})
    browser.get(url)
    browser.execute_script("""
        const page = document.documentElement, still = document.createElement("style");
        still.textContent = "* { transition: none !important; animation: none !important; }";
        page.append(still);
        page.dataset.mode = page.dataset.theme = arguments[0];
    """, theme)
    done = """
        const done = arguments[arguments.length - 1];
        const ready = window.MathJax && MathJax.startup ? MathJax.startup.promise : Promise.resolve();
        ready.then(() => requestAnimationFrame(() => setTimeout(done, 0)));
    """
    WebDriverWait(browser, 20).until(lambda b: b.execute_script("return document.readyState") == "complete")
    browser.execute_async_script(done)
