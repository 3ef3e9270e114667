"""The built pages in a browser that can reach this machine alone: they load, draw and can be read."""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import re
import sys
import threading
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote

import pytest
from axe_core_python.selenium import Axe
from book_pages import html_folder, missing, pages
from selenium.webdriver.support.ui import WebDriverWait

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

from chrome import PHONE, WIDE, open_page, running


@pytest.fixture(scope="module")
def site():
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=html_folder())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def browser():
    with contextlib.ExitStack() as until_the_end:
        try:
            chrome = until_the_end.enter_context(running("host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"))
        except FileNotFoundError as error:
            missing(str(error))
        yield chrome


def drain(browser) -> tuple[list[str], list[str]]:
    """What was asked for and what went wrong since the last call."""
    asked, wrong = [], []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            asked.append(message["params"]["request"]["url"])
        if message["method"] == "Network.responseReceived" and message["params"]["response"]["status"] >= 400:
            wrong.append(f"{message['params']['response']['status']} {message['params']['response']['url']}")
    wrong += [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    return asked, wrong


def names() -> list[str]:
    folder = html_folder()
    return [page.relative_to(folder).as_posix() for page in pages(folder)]


@pytest.mark.slow
def test_axe_finds_no_violation(browser, site):
    """What axe can tell of every page by the rules of WCAG 2.1, AA: names, roles, tables, landmarks.

    Contrast, axe's slowest rule, has a test of its own, in both themes. Extensions write a section's id twice: WCAG 2.2
    has dropped that rule, and links find the first one.
    """
    browser.set_script_timeout(120)
    rules = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}
    without = {name: {"enabled": False} for name in ("color-contrast", "duplicate-id")}
    asked = {"resultTypes": ["violations"], "runOnly": rules, "rules": without}
    run = "axe.run(document, arguments[0]).then(results => arguments[1](results.violations))"
    found = []
    for name in names():
        open_page(browser, f"{site}/{name}")
        browser.execute_script(Axe().axe_script)
        for fault in browser.execute_async_script(run, asked):
            at = [" ".join(map(str, node["target"])) for node in fault["nodes"]]
            found.append(f"{name}: {fault['id']} ({fault['impact']}), {len(at)} times, first at {at[0]}")
    assert not found, "\n".join(found)


def test_pages_load_without_another_host_and_without_errors(browser, site):
    open_page(browser, f"{site}/index.html")
    drain(browser)  # the new-tab page's own requests
    for name in [*names(), "index.html", "search.html", "genindex.html"]:
        open_page(browser, f"{site}/{name}")
        asked, wrong = drain(browser)
        outside = [url for url in asked if not url.startswith((site, "data:", "blob:", "about:"))]
        assert asked and not outside and not wrong, (name, outside, wrong)


def test_the_watch_sees_outside_requests_and_errors(browser, site):
    open_page(browser, f"{site}/{names()[0]}")
    drain(browser)
    browser.execute_async_script("""
        const done = arguments[arguments.length - 1];
        console.error("seen");
        fetch("https://example.org/x.js").catch(() => fetch("/not-here.png")).finally(() => setTimeout(done, 50));
    """)
    asked, wrong = drain(browser)
    assert "https://example.org/x.js" in asked
    assert any("seen" in line for line in wrong) and any(line.startswith("404") for line in wrong)


def test_mathematics_is_drawn(browser, site):
    drawn = 0
    for name in names():
        open_page(browser, f"{site}/{name}")
        sources, done, failed = browser.execute_script("""
            const all = selector => [...document.querySelectorAll(selector)];
            return [all(".math").length, all(".math mjx-container").length,
                    all("mjx-merror, [data-mml-node=merror]").map(node => node.textContent)];
        """)
        assert done >= sources and not failed, (name, sources, done, failed)
        drawn += done
    assert drawn, "the book has mathematics"


def test_no_page_is_wider_than_a_phone(browser, site):
    for name in names():
        open_page(browser, f"{site}/{name}", PHONE)
        width, wide = browser.execute_script("""
            const main = document.querySelector("main") || document.body;
            const clips = node => { for (let n = node; n && n !== main; n = n.parentElement)
                if (getComputedStyle(n).overflowX !== "visible") return true; return false; };
            return [document.documentElement.scrollWidth,
                    [...main.querySelectorAll("*")]
                        .filter(n => n.getBoundingClientRect().right > arguments[0] + 1 && !clips(n))
                        .map(n => n.outerHTML.slice(0, 120)).slice(0, 5)];
        """, PHONE[0])
        assert width <= PHONE[0] and not wide, (name, width, wide)


CONTRAST = """
    // Worst contrast (WCAG 2) of visible text against what is painted behind it, per kind of text.
    const channel = value => (value /= 255) <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => .2126 * channel(r) + .7152 * channel(g) + .0722 * channel(b);
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = colour => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
                             const d = canvas.getImageData(0, 0, 1, 1).data; return [d[0], d[1], d[2], d[3] / 255]; };
    const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3]));
    const behind = node => node ? over(rgba(getComputedStyle(node).backgroundColor), behind(node.parentElement))
                                : [255, 255, 255];
    const ratio = (a, b) => (Math.max(light(a), light(b)) + .05) / (Math.min(light(a), light(b)) + .05);
    const kinds = {
        text: ".bd-article p, .bd-article li, .bd-article td, .bd-article h1, .bd-article h2, .bd-article h3",
        link: ".bd-article a",
        caption: "figcaption, figcaption *",
        mathematics: ".bd-article mjx-container",
        code: ".bd-article pre, .bd-article pre span, .bd-article code",
        output: ".cell_output pre, .cell_output .text_html, .cell_output .text_html *",
        navigation: ".bd-sidebar-primary a, .bd-sidebar-secondary a",
    };
    const opacity = node => node ? getComputedStyle(node).opacity * opacity(node.parentElement) : 1;
    // What is folded is read too.
    for (const node of document.querySelectorAll("details")) node.open = true;
    for (const node of document.querySelectorAll(".toggle-hidden")) node.classList.remove("toggle-hidden");
    const worst = {};
    for (const [kind, selector] of Object.entries(kinds))
        for (const node of document.querySelectorAll(selector)) {
            const said = kind === "mathematics" || [...node.childNodes].some(n => n.nodeType === 3 && n.data.trim());
            if (!said || !node.getClientRects().length || node.closest("svg, .headerlink, mjx-assistive-mml")) continue;
            const back = behind(node), [r, g, b, a] = rgba(getComputedStyle(node).color);
            const value = ratio(over([r, g, b, a * opacity(node)], back), back);
            if (!(kind in worst) || value < worst[kind][0]) worst[kind] = [value, node.outerHTML.slice(0, 160)];
        }
    return [document.documentElement.dataset.theme, light(behind(document.querySelector(".bd-article"))), worst];
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_text_can_be_read(browser, site, theme):
    seen = set()
    for name in names():
        open_page(browser, f"{site}/{name}", theme=theme)
        shown, paper, worst = browser.execute_script(CONTRAST)
        assert shown == theme and (paper > 0.5) == (theme == "light"), (name, shown, paper)
        for kind, (value, where) in worst.items():
            # 4.5 is WCAG AA for text; syntax colours of the theme's own code style sit just under it.
            assert value >= (4.0 if kind == "code" else 4.5), (name, kind, round(value, 2), where)
        seen |= set(worst)
    assert {"text", "link", "code", "output", "caption", "mathematics", "navigation"} <= seen


def test_contrast_check_sees_grey_on_grey(browser, site):
    open_page(browser, f"{site}/{names()[0]}")
    browser.execute_script("document.querySelector('.bd-article p').style.color = '#bbb'")
    assert browser.execute_script(CONTRAST)[2]["text"][0] < 3


@pytest.mark.parametrize(("size", "theme"), [(WIDE, "light"), (WIDE, "dark"), (PHONE, "dark")])
def test_figures_keep_their_colours_and_proportions(browser, site, size, theme):
    """In a token map or a heat map both carry meaning: no theme may dim or tint one, no column may squeeze a figure.

    In dark mode a plot changes its paper for a dark one, and keeps its hues.
    """
    plots = 0
    for name in names():
        open_page(browser, f"{site}/{name}", size, theme)
        figures = browser.execute_script("""
            return [...document.querySelectorAll(".cell_output img, figure img")].map(node => {
                const style = getComputedStyle(node), px = key => parseFloat(style[key]);
                const wide = node.clientWidth - px("paddingLeft") - px("paddingRight");
                const high = node.clientHeight - px("paddingTop") - px("paddingBottom");
                const plot = node.classList.contains("plot");
                return [node.src, plot, style.filter, wide / high / (node.naturalWidth / node.naturalHeight)];
            });
        """)
        for source, plot, tint, stretch in figures:
            dark = plot and theme == "dark"
            assert tint == ("invert(0.93) hue-rotate(180deg)" if dark else "none"), (name, source)
            assert abs(stretch - 1) < 0.02, (name, source, stretch)
            plots += plot
    assert plots > 20


FINDS = {"encode_image": "12_use_it", "segmentation": "12_use_it", "energy score": "02_energy_score", "ONNX": "export"}


@pytest.mark.parametrize(("words", "page"), FINDS.items())
def test_the_search_finds(browser, site, words, page):
    open_page(browser, f"{site}/search.html?q={quote(words)}")
    results = "#search-results li a"
    WebDriverWait(browser, 20).until(lambda b: any(
        page in link.get_attribute("href") for link in b.find_elements("css selector", results)))


READINGS = """
    return [...document.querySelectorAll(".live[data-live]")].map(box => [
        box.dataset.live, box.classList.contains("live-on"), box.querySelectorAll(":scope > img, noscript").length,
        (box.querySelector(".live-reading") || {}).textContent]);
"""
KEYS = {"left": "\ue012", "up": "\ue013", "right": "\ue014", "down": "\ue015", "space": " "}


def live_boxes(browser, site):
    """Every interactive figure of the book, one after the other: its kind and its box."""
    for name in names():
        open_page(browser, f"{site}/{name}")
        for box in browser.find_elements("css selector", ".live[data-live]"):
            yield name, box.get_attribute("data-live"), box


def what_is_shown(box) -> tuple[str, str]:
    drawings = box.find_elements("css selector", ".live-body svg")
    drawn = " ".join(drawing.get_attribute("outerHTML") for drawing in drawings)
    return box.find_element("css selector", ".live-reading").text, drawn


def test_live_figures_answer_to_the_keyboard(browser, site):
    """Sliders, choices, maps and handles move by keys; the drawing follows, and the words, which are announced."""
    kinds = set()
    for name, kind, box in live_boxes(browser, site):
        kinds.add(kind)
        assert box.find_element("css selector", ".live-reading").get_attribute("role") == "status"
        controls = {
            "input[type=range]": ("left", "right"),
            ".live-picker": ("right", "down"),
            ".live-handle": ("left", "right"),
        }
        for selector, keys in controls.items():
            for control in box.find_elements("css selector", selector):
                before = what_is_shown(box)
                for key in keys:  # one of the two moves it, wherever it stands
                    control.send_keys(KEYS[key])
                    after = what_is_shown(box)
                    if after != before:
                        break
                assert after[0] != before[0] and after[1] != before[1], (name, kind, selector)
        for control in box.find_elements("css selector", "input[type=range]"):
            label = box.find_element("css selector", f"label[for={control.get_attribute('id')}]")
            assert control.get_attribute("aria-valuetext") in label.text, (name, kind)
        for group in box.find_elements("css selector", "fieldset"):
            before = what_is_shown(box)
            group.find_element("css selector", "input:checked").send_keys(KEYS["right"])
            assert what_is_shown(box) != before, (name, kind, group.text)
        for control in box.find_elements("css selector", "select"):
            if len(control.find_elements("css selector", "option:enabled")) > 1:
                before = what_is_shown(box)
                at_end = control.find_elements("css selector", "option:enabled")[-1].is_selected()
                control.send_keys(KEYS["up" if at_end else "down"])
                after = what_is_shown(box)
                assert after[0] != before[0] and after[1] != before[1], (name, kind, control.text)
    scripts = (html_folder() / "_static" / "live").glob("*.js")
    assert kinds == {kind for script in scripts for kind in re.findall(r'Live\.figure\("([^"]+)"', script.read_text())}


def test_live_figures_show_what_the_data_say(browser, site):
    """The token map counts by the schedule; shuffling changes ToMe's groups alone; shares add up to the distance."""
    for name, kind, box in live_boxes(browser, site):
        if kind == "token-map":
            data = json.loads(box.find_element("css selector", "script").get_attribute("textContent"))
            keep, layer = box.find_elements("css selector", "input[type=range]")
            layer.send_keys("\ue010")  # End
            left = data["tokens"][int(keep.get_attribute("value"))][-1]
            assert box.find_element("css selector", ".live-number").text == str(left)
            assert f"{left} of 256 tokens" in what_is_shown(box)[0], name
            for drawing in box.find_elements("css selector", ".live-map"):  # tokens of several patches, and the others
                label = drawing.get_attribute("aria-label")
                alone = int(label.split(": ")[1].split(" alone")[0])
                assert alone + len(drawing.find_elements("css selector", "g path")) == left, label
        if kind == "one-merge":
            buttons = {b.text: b for b in box.find_elements("css selector", "button")}
            while buttons["Next"].is_enabled():
                buttons["Next"].send_keys(KEYS["space"])
            assert what_is_shown(box)[0].startswith("12 tokens are left.")
            buttons["Shuffle tokens"].send_keys(KEYS["space"])
            assert "The same groups as before shuffling" in what_is_shown(box)[0], name
            box.find_element("css selector", "input:checked").send_keys(KEYS["right"])
            assert "Other groups than before shuffling" in what_is_shown(box)[0], name
        if kind == "reading":
            data = json.loads(box.find_element("css selector", "script").get_attribute("textContent"))
            box.find_element("css selector", "input[type=range]").send_keys("\ue010")  # End
            for order, way in zip(box.find_elements("css selector", "fieldset")[1].find_elements(
                    "css selector", "label"), data["methods"][0]["orders"], strict=True):
                order.click()
                steps = [b < a for a, b in pairwise(way["positions"])]
                assert f"{sum(steps)} lead to a lower position" in what_is_shown(box)[0], name
                assert f"begins at position {way['length']}" in what_is_shown(box)[0], name
                assert way["said"] in box.text and way["accuracy"] in box.text, name
        if kind == "six-tokens":
            words = what_is_shown(box)[0].split("spectral distance ")[1].split(", the shares")[0]
            distance, shares = words.split(" = ")
            assert abs(float(distance) - sum(float(s.split(" (")[0]) for s in shares.split(" + "))) < 0.002, words
        if kind == "clusters":  # in words and in the drawing: wrong merges of this draw, draws without any
            words = what_is_shown(box)[0]
            wrong = sum(int(part.split(" of ")[0]) for part in words.split(" with ")[1:])
            assert len(box.find_elements("css selector", ".live-wrong")) == wrong, words
            clean = sum(int(part.split()[0].strip(",")) for part in words.split("No wrong merge")[1].split(" in ")[1:])
            hollow = len(box.find_elements("css selector", ".live-hollow"))
            assert clean + hollow == len(box.find_elements("css selector", ".live-draw")), words


def test_claims_are_filtered_by_keyboard_and_counted(browser, site):
    open_page(browser, f"{site}/book/paper_and_code.html")
    rows = browser.find_elements("css selector", ".claims-table tbody tr")
    reading = browser.find_element("css selector", ".claims-shown")
    assert reading.get_attribute("role") == "status" and reading.text == f"{len(rows)} of {len(rows)} claims shown"
    for button in browser.find_elements("css selector", ".claims-filter button"):
        value, count = button.text[:-1].rsplit(" (", 1)
        group = button.find_element("xpath", "..").get_attribute("aria-label")
        button.send_keys(KEYS["space"])
        shown = [row for row in rows if row.is_displayed()]
        assert button.get_attribute("aria-pressed") == "true" and len(shown) == int(count) > 0
        assert value == "all" or {row.get_attribute(f"data-{group}") for row in shown} == {value}
        assert reading.text.startswith(f"{len(shown)} of ")
        button.find_element("xpath", "../button").send_keys(KEYS["space"])
    browser.find_element("css selector", "#claims-words").send_keys("digits clip")
    shown = [row for row in rows if row.is_displayed()]
    assert 0 < len(shown) < len(rows) and reading.text.startswith(f"{len(shown)} of ")


@pytest.mark.parametrize(("size", "theme"), [(WIDE, "dark"), (PHONE, "light")])
def test_live_figures_have_room(browser, site, size, theme):
    """No text of a drawing is smaller than 8 pixels, no control is narrower than a finger, none lies over another."""
    for name in names():
        open_page(browser, f"{site}/{name}", size, theme)
        found = browser.execute_script("""
            const seen = node => node.getClientRects().length, wrong = [];
            for (const box of document.querySelectorAll(".live[data-live]")) {
                for (const text of box.querySelectorAll("svg text")) {
                    const of = text.ownerSVGElement, wide = of.getBoundingClientRect().width;
                    const pixels = parseFloat(getComputedStyle(text).fontSize) * wide / of.viewBox.baseVal.width;
                    if (pixels < 8) wrong.push(["small", text.textContent]);
                }
                const kinds = "input[type=range], .live-options label, .live-button, .live-group";
                const controls = [...box.querySelectorAll(kinds)].filter(seen);
                controls.forEach((a, i) => {
                    const one = a.getBoundingClientRect();
                    if (Math.min(one.height, one.width) < 24) wrong.push(["control", a.outerHTML.slice(0, 80)]);
                    for (const b of controls.slice(i + 1)) {
                        const two = b.getBoundingClientRect();
                        if (Math.min(one.right, two.right) - Math.max(one.left, two.left) > 1
                            && Math.min(one.bottom, two.bottom) - Math.max(one.top, two.top) > 1)
                            wrong.push(["over", a.textContent, b.textContent]);
                    }
                });
            }
            return wrong;
        """)
        assert not found, (name, found)


def test_live_figures_run_from_a_file_and_stand_still_where_asked(browser, site):
    motion = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    try:
        for value, playing in (([], 1), (motion, 0)):
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": value})
            open_page(browser, (html_folder().resolve() / "book" / "index.html").as_uri())
            (kind, drawn, stills, words), *_ = browser.execute_script(READINGS)
            assert (kind, drawn, stills) == ("token-map", True, 0) and "125 of 256 tokens" in words
            assert len(browser.find_elements("css selector", ".live .live-button")) == playing  # Play
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_without_scripts_a_picture_stands_there(browser, site):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        for name in names():
            browser.get(f"{site}/{name}")
            for box in browser.find_elements("css selector", ".live[data-live]"):
                picture = box.find_element("css selector", "img")
                assert picture.size["width"] > 200 and picture.get_attribute("alt"), name
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
