"""The page at `/`: without a browser, and in a real one."""

import re
import shutil
import sys
from contextlib import ExitStack
from importlib.util import find_spec

import pytest
from support.serving import TICKETS, Served

from raft_peft.serving.app import create_app
from raft_peft.serving.limits import Limits

PROMPT = "Review: not bad. Stars:"
CHROMIUM = shutil.which("chromium")
# Chromium asks nothing of the network by itself.
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]


@pytest.fixture(scope="module")
def paged(models):
    pytest.importorskip("gradio", reason="the page needs gradio: pip install 'raft-peft[page]'")
    one = Served(create_app(models, Limits(prompt_tokens=500), api_key="a-long-secret", page=True))
    yield one
    one.stop()


def posted(served, data):
    """What the first event of the page, asking, gives for the values of its fields."""
    body = {"fn_index": 0, "data": data, "session_hash": "a"}
    return served.client.post("/gradio_api/run/predict", json=body, auth=("me", "a-long-secret"))


def values(text):
    slots = [["", "score", "", ""]] * 8
    return ["stars", text, "A number", "", "none", True, *(field for slot in slots for field in slot)]


def test_the_page_answers_those_who_have_the_key(paged, alone):
    refused = paged.client.get("/")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
    assert "stars" not in refused.text
    assert paged.client.get("/", auth=("me", "a-long-secre")).status_code == 401
    assert paged.client.get("/config").status_code == 401
    # A browser's user has a password. Programs send the key as before.
    assert paged.client.get("/v1/models", auth=("me", "a-long-secret")).status_code == 401
    page = paged.client.get("/", auth=("me", "a-long-secret"), headers={"Origin": "http://other.example"})
    assert page.status_code == 200 and "gradio" in page.text
    assert not [name for name in page.headers if name.startswith("access-control-")]
    assert page.headers["content-security-policy"].startswith("default-src 'self'")
    for path in ("/gradio_api/upload", "/gradio_api/proxy=http://a", "/gradio_api/info", "/monitoring", "/moon"):
        assert paged.client.get(path, headers={"Authorization": "Bearer a-long-secret"}).status_code == 404
    html, link = posted(paged, values(PROMPT)).json()["data"]
    numbers = [float(number) for number in re.findall(r'<data value="([^"]+)"', html)]
    assert numbers[1] == pytest.approx(alone["stars"].predict([PROMPT])[0], abs=1e-5)
    assert link == "model=stars&text=Review%3A+not+bad.+Stars%3A&base=1"
    html, link = posted(paged, values("word " * 600)).json()["data"]
    assert "takes 500" in html and link == ""


def test_without_gradio_there_is_a_message(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "raft_peft.serving.page.blocks", raising=False)
    served = Served(create_app(models, page=True))
    assert "pip install 'raft-peft[page]'" in served.client.get("/").text
    assert served.client.get("/v1/models").status_code == 200
    served.stop()


@pytest.fixture
def browser():
    if CHROMIUM is None or find_spec("playwright") is None:
        pytest.skip("needs chromium on the PATH, and playwright: pip install 'raft-peft[browser]'")
    from playwright.sync_api import sync_playwright

    with ExitStack() as stack:
        playwright = stack.enter_context(sync_playwright())
        yield stack.enter_context(playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS))


def test_a_person_asks_in_a_browser(browser, paged, alone):
    context = browser.new_context(http_credentials={"username": "me", "password": "a-long-secret"})
    page, asked = context.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(paged.url)
    page.get_by_label("A number").wait_for()
    page.locator("#text textarea").fill(PROMPT)
    page.locator("#ask").click()
    number = page.locator("#found data")
    number.nth(1).wait_for()
    expected = alone["stars"].predict([PROMPT])[0]
    assert float(number.nth(1).get_attribute("value")) == pytest.approx(expected, abs=1e-5)
    page.wait_for_url("**/?model=stars*")
    assert page.locator("#link input, #link textarea").input_value() == page.url

    again = context.new_page()
    again.goto(page.url)
    again.locator("#found data").nth(1).wait_for()
    assert again.locator("#text textarea").input_value() == PROMPT
    assert again.locator("#found data").nth(1).get_attribute("value") == number.nth(1).get_attribute("value")

    page.get_by_label("Questions").click()
    page.locator("#question-0 textarea, #question-0 input").fill("How urgent?")
    page.locator("#criteria-0 textarea, #criteria-0 input").fill("can wait, this week, today")
    page.locator("#name-0 textarea, #name-0 input").fill("urgency")
    page.locator("#ask").click()
    page.locator("#found h3", has_text="urgency").wait_for()
    urgency = alone["stars"].decide(PROMPT, {"urgency": TICKETS["urgency"]})["urgency"].value
    assert float(number.nth(1).get_attribute("value")) == pytest.approx(urgency, abs=1e-5)
    assert {url.split("/")[2] for url in asked} == {paged.url.split("/")[2]}
