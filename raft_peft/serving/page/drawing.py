"""What was found, drawn as HTML: the value on its scale, the distribution as bars, interval, mass and entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from raft_peft.data.questions.question import PREDICATE, SCORE
from raft_peft.serving.page.asking import NUMBER_OF_PROMPT, Found, Side

# More bars than this are not told apart on a screen. Neighbours are then added up.
_MOST_BARS = 40

CSS = """
#found, #found .html-container { padding: 0 !important; }
.raft-found { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 12px 16px;
  margin-bottom: 12px; background: var(--background-fill-primary); color: var(--body-text-color); }
.raft-found h3 { margin: 0 0 2px; font-size: 1rem; }
.raft-found h3 small, .raft-words, .raft-model, .raft-figures dt, .raft-ends { opacity: .75; }
.raft-found h3 small { font-weight: normal; margin-left: 6px; }
.raft-words { margin: 0 0 8px; }
.raft-sides { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 8px 32px; }
.raft-model { font-size: .85rem; }
.raft-value { font-size: 1.9rem; font-weight: 600; line-height: 1.3; }
.raft-scale { position: relative; height: 22px; }
.raft-scale::before { content: ""; position: absolute; left: 0; right: 0; top: 10px; height: 2px;
  background: var(--border-color-primary); }
.raft-scale .interval { position: absolute; top: 7px; height: 8px; border-radius: 4px; background: var(--color-accent);
  opacity: .3; }
.raft-scale .mark { position: absolute; top: 3px; width: 4px; height: 16px; margin-left: -2px; border-radius: 2px;
  background: var(--color-accent); }
.raft-ends { display: flex; justify-content: space-between; font-size: .8rem; margin-bottom: 8px; }
.raft-bars { display: grid; grid-template-columns: max-content 1fr max-content; gap: 2px 8px; align-items: center;
  font-size: .85rem; }
.raft-bars .label { text-align: right; max-width: 14em; overflow: hidden; text-overflow: ellipsis;
  white-space: nowrap; }
.raft-bars .bar { height: 12px; border-radius: 2px; background: var(--color-accent); min-width: 1px; }
.raft-bars .in { font-weight: 600; }
.raft-bars .share { font-variant-numeric: tabular-nums; }
.raft-figures { display: flex; flex-wrap: wrap; gap: 2px 20px; margin: 8px 0 0; font-size: .85rem; }
.raft-figures div { display: flex; gap: 6px; }
.raft-figures dd { margin: 0; font-variant-numeric: tabular-nums; }
.raft-remark { margin: 6px 0 0; font-size: .85rem; }
.raft-refused { border: 1px solid var(--error-border-color, #c33); border-radius: 8px; padding: 10px 16px; }
"""


def drawn(found: Sequence[Found]) -> str:
    """What was found, as HTML. A number has its exact value in the attribute of a `data` element."""
    return "".join(_drawn_one(one) for one in found)


def refused(message: str) -> str:
    """Why a request is refused, as HTML."""
    return f'<div class="raft-refused" role="alert">{escape(message)}</div>'


def _drawn_one(found: Found) -> str:
    title, kind = (found.name, found.kind) if found.kind != NUMBER_OF_PROMPT else ("Prediction", "")
    words = f'<p class="raft-words">{escape(found.words)}</p>' if found.words else ""
    sides = "".join(_drawn_side(found, side) for side in found.sides)
    return (
        f'<section class="raft-found"><h3>{escape(title)}<small>{escape(kind)}</small></h3>{words}'
        f'<div class="raft-sides">{sides}</div></section>'
    )


def _drawn_side(found: Found, side: Side) -> str:
    parts = [f'<div class="raft-model">{escape(side.model)}</div>', _value(found, side)]
    if found.scale is not None and isinstance(side.value, float):
        numbers = [f"{end:g} " if found.kind == SCORE else "" for end in found.scale]
        ends = [number + words for number, words in zip(numbers, found.ends, strict=True)]
        parts.append(_scale(found.scale, ends, side))
    if side.probabilities:
        parts.append(_bars(side.probabilities, side.options or ()))
    parts.append(_figures(side))
    if side.remark:
        parts.append(f'<p class="raft-remark">{escape(side.remark)}</p>')
    return f"<div>{''.join(parts)}</div>"


def _value(found: Found, side: Side) -> str:
    if side.value is None:
        return '<div class="raft-value">-</div>'
    if isinstance(side.value, str):
        return f'<div class="raft-value">{escape(side.value)}</div>'
    shown = f"{side.value:.1%} yes" if found.kind == PREDICATE else f"{side.value:.3f}"
    return f'<div class="raft-value"><data value="{side.value!r}">{shown}</data></div>'


def _scale(scale: tuple[float, float], ends: Sequence[str], side: Side) -> str:
    low, high = scale
    band = ""
    if side.low is not None and side.high is not None:
        left, right = _place(side.low, low, high), _place(side.high, low, high)
        band = f'<div class="interval" style="left:{left:.2f}%;width:{right - left:.2f}%"></div>'
    assert isinstance(side.value, float)
    mark = f'<div class="mark" style="left:{_place(side.value, low, high):.2f}%"></div>'
    return (
        f'<div class="raft-scale">{band}{mark}</div>'
        f'<div class="raft-ends"><span>{escape(ends[0])}</span><span>{escape(ends[1])}</span></div>'
    )


def _place(value: float, low: float, high: float) -> float:
    """Where a value lies on a scale, in percent of its length; at an end where it lies beyond it."""
    return 100 * min(max((value - low) / (high - low), 0.0), 1.0) if high > low else 50.0


def _bars(probabilities: Mapping[str, float], inside: Sequence[str]) -> str:
    shares = _joined(probabilities)
    greatest = max(shares.values()) or 1.0
    rows = []
    for name, share in shares.items():
        mark = " in" if name in inside else ""
        rows.append(
            f'<span class="label{mark}" title="{escape(name)}">{escape(name)}</span>'
            f'<span><div class="bar" style="width:{100 * share / greatest:.2f}%"></div></span>'
            f'<span class="share">{share:.3f}</span>'
        )
    return f'<div class="raft-bars">{"".join(rows)}</div>'


def _joined(probabilities: Mapping[str, float]) -> dict[str, float]:
    """The probabilities of as many bars as a screen has room for: neighbours are added up."""
    size = math.ceil(len(probabilities) / _MOST_BARS)
    if size == 1:
        return dict(probabilities)
    pairs = list(probabilities.items())
    parts = [pairs[start : start + size] for start in range(0, len(pairs), size)]
    return {
        names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}": sum(share for _, share in part)
        for part in parts
        for names in [[name for name, _ in part]]
    }


def _figures(side: Side) -> str:
    figures: dict[str, str] = {}
    if side.low is not None and side.high is not None:
        figures["interval"] = f"{side.low:.3f} to {side.high:.3f}"
    if side.options is not None:
        figures["options"] = ", ".join(side.options) or "none"
    if side.mass is not None:
        figures["label mass"] = f"{side.mass:.4g}"
    if side.entropy is not None:
        figures["entropy"] = f"{side.entropy:.3f} of {math.log(len(side.probabilities)):.3f} nats"
    pairs = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in figures.items())
    return f'<dl class="raft-figures">{pairs}</dl>'
