"""Answers as HTML."""

import re
from dataclasses import replace

from raft_peft.serving.page.asking import NUMBER_OF_PROMPT, Found, Side
from raft_peft.serving.page.drawing import drawn, refused


def found(*sides, kind=NUMBER_OF_PROMPT, scale=(1.0, 5.0), name="", words=""):
    return Found(name=name, kind=kind, words=words, scale=scale, ends=("1", "5"), sides=sides)


def test_a_number_stands_on_its_scale_with_its_interval():
    side = Side(
        model="stars", value=2.0, probabilities={"1": 0.25, "5": 0.5}, mass=0.75, low=1.0, high=4.0, entropy=0.5
    )
    html = drawn([found(side)])
    # 2 lies a quarter of the way from 1 to 5, and 1 to 4 covers three quarters.
    assert 'class="mark" style="left:25.00%"' in html
    assert 'class="interval" style="left:0.00%;width:75.00%"' in html
    assert re.findall(r'class="bar" style="width:([\d.]+)%', html) == ["50.00", "100.00"]
    assert '<data value="2.0">2.000</data>' in html and "1.000 to 4.000" in html
    assert "0.500 of 0.693 nats" in html and "<dd>0.75</dd>" in html


def test_a_value_beyond_the_scale_stands_at_its_end():
    html = drawn([found(Side(model="stars", value=0.2, probabilities={}))])
    assert 'class="mark" style="left:0.00%"' in html and 'class="raft-bars"' not in html


def test_the_ends_of_a_score_are_levels_with_their_numbers():
    one = Found(name="mood", kind="score", words="", scale=(0, 4), ends=("sad", "glad"), sides=[])
    html = drawn([replace(one, sides=[Side(model="stars", value=1.0, probabilities={})])])
    assert "<span>0 sad</span><span>4 glad</span>" in html


def test_what_others_wrote_is_no_html():
    side = Side(model="<b>", value="<i>", probabilities={"<i>": 1.0}, options=("<i>",), remark="<u>")
    html = drawn([found(side, kind="choice", scale=None, name="<s>", words="<q>")]) + refused("<script>")
    assert not re.search(r"<(b|i|u|s|q|script)>", html) and html.count("&lt;i&gt;") == 4


def test_many_numbers_share_bars():
    side = Side(model="stars", value=1.0, probabilities={str(number): 0.01 for number in range(100)})
    html = drawn([found(side)])
    assert html.count('class="bar"') == 34 and "0 to 2" in html and "0.030" in html
