"""The playground, in a real browser: types, streams, replays, shows an error."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.serve.browser import DRIVER, Browser, browser
from tests.serve.conftest import until

needs_browser = pytest.mark.skipif(
    DRIVER is None, reason="needs chromedriver: apt-get install chromium chromium-driver"
)
SORT = "sort up: 4 8 1 9 3"
ENTER = "\ue007"


def test_the_page_comes_from_here_alone(client: TestClient) -> None:
    response = client.get("/")
    assert response.headers["content-security-policy"].startswith("default-src 'none'; script-src")
    assert "unsafe" not in response.headers["content-security-policy"]
    page = response.text + client.get("/playground.js").text + client.get("/playground.css").text
    assert "http://" not in page and "https://" not in page
    assert "innerHTML" not in page and "eval(" not in page


@pytest.fixture(scope="module")
def tab() -> Iterator[Browser]:
    with browser() as found:
        yield found


def ask(tab: Browser, prompt: str, **settings: str) -> None:
    """Fill the form as a user would, and send it with the keyboard."""
    tab.run("document.getElementById('prompt').value = ''")
    tab.type("prompt", prompt)
    for name, value in settings.items():
        tab.run("document.getElementById(arguments[0]).value = arguments[1]", name, value)
    tab.type("send", ENTER)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [375, 1440])
def test_an_answer_is_typed_streamed_and_replayed(
    tab: Browser, server_url: str, width: int, tmp_path: Path
) -> None:
    tab.open(f"{server_url}/", width)
    until(lambda: tab.run("return document.getElementById('policy').options.length") == 2)
    ask(tab, SORT, refine="none")
    until(lambda: tab.text("status") == "answered")
    assert tab.text("answer") == tab.text("canvas") == "1 3 4 8 9"
    assert "steps" in tab.text("decision") and "decision id" in tab.text("decision")
    steps = tab.run("return Number(document.getElementById('scrubber').max)")
    assert steps >= 1
    first = "const s = document.getElementById('scrubber'); s.value = 1;"
    tab.run(first + "s.dispatchEvent(new Event('input'))")
    assert tab.text("step-shown") == f"1 of {steps}"
    assert tab.run("return document.querySelectorAll('#plans tbody tr.chosen').length") == 1
    assert "%" in tab.text("meter-shown")
    assert tab.run("return document.documentElement.scrollWidth") <= width
    tab.screenshot(tmp_path / f"playground-{width}.png")


@needs_browser
@pytest.mark.slow
def test_an_error_is_shown_and_announced(tab: Browser, server_url: str) -> None:
    tab.open(f"{server_url}/")
    tab.run("document.getElementById('prompt').required = false")
    ask(tab, " ")
    until(lambda: not tab.run("return document.getElementById('error').hidden"))
    assert tab.text("error").startswith("400: messages")
    role = "return document.getElementById('error').getAttribute('role')"
    assert tab.run(role) == "alert"


@needs_browser
@pytest.mark.slow
def test_edits_are_shown_and_every_field_has_a_name(tab: Browser, server_url: str) -> None:
    tab.open(f"{server_url}/")
    unnamed = """return [...document.querySelectorAll('input,select,textarea,button')]
        .filter((e) => !(e.labels?.length || e.textContent.trim() || e.ariaLabel)).length"""
    assert tab.run(unnamed) == 0
    ask(tab, "code: a + b == 5; c + d == 3", refine="verify", steps="1")
    until(lambda: tab.text("status") == "answered")
    if tab.run("return document.getElementById('edits').hidden"):
        assert tab.text("answer") == tab.text("canvas")  # the draft was right
    else:
        kept = """const e = document.getElementById('edited').cloneNode(true);
            e.querySelectorAll('del').forEach((d) => d.remove()); return e.textContent"""
        assert tab.run(kept) == tab.text("answer")
