"""The page in Gradio: fields to ask with, and what is found beside them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raft_peft.serving.computing import Computer
from raft_peft.serving.errors import RequestError
from raft_peft.serving.models import ServedModel
from raft_peft.serving.page.asking import Asked, ask
from raft_peft.serving.page.drawing import CSS, drawn, refused
from raft_peft.serving.page.form import (
    IN_WORDS,
    SLOTS,
    WHAT_IS_WRITTEN,
    Slot,
    examples_of,
    fields_of,
    questions_of_slots,
    slots_of,
    usual_level,
)

_NUMBER, _QUESTIONS = "A number", "Questions"
_LEVELS = ("none", "0.5", "0.8", "0.9", "0.95")
# Browsers and servers take no links of any length.
_LONGEST_LINK = 8000
# The address of the page becomes the link, too.
_TO_LINK = """(query) => {
  if (!query) return "";
  const link = new URL(window.location);
  link.search = query;
  window.history.replaceState(null, "", link);
  return link.href;
}"""
# Whatever Gradio's own page names elsewhere, a browser fetches nothing from there.
_POLICY = b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:"
_FONTS = ("system-ui", "sans-serif"), ("ui-monospace", "monospace")


@dataclass(frozen=True)
class _Fields:
    """The fields of the page that a request is made of, and those that show or hide them."""

    model: gr.Dropdown
    text: gr.Textbox
    kind: gr.Radio
    grid: gr.Textbox
    interval: gr.Dropdown
    base: gr.Checkbox
    slots: list[tuple[gr.Textbox, gr.Dropdown, gr.Textbox, gr.Textbox]]
    groups: list[gr.Group]
    questions: gr.Column
    count: gr.Number
    examples: gr.Dataset

    @property
    def inputs(self) -> list[Any]:
        """What `asked_of` takes, in order."""
        of_slots = [field for slot in self.slots for field in slot]
        return [self.model, self.text, self.kind, self.grid, self.interval, self.base, *of_slots]

    @property
    def all(self) -> list[Any]:
        """What `filled` gives, in order."""
        return [*self.inputs, *self.groups, self.questions, self.count, self.examples]


def asked_of(values: Sequence[Any]) -> Asked:
    """What is asked by the values of the fields.

    Raises:
        RequestError: questions are asked, and none is filled in.
    """
    model, text, kind, grid, interval, base, *rest = values
    # A field that was never filled in is None.
    slots = [Slot(*(value or "" for value in rest[start : start + 4])) for start in range(0, len(rest), 4)]
    return Asked(
        model=model or "",
        text=text or "",
        questions=questions_of_slots(slots) if kind == _QUESTIONS else None,
        grid=(grid or "").strip() if kind == _NUMBER else "",
        interval=float(interval) if interval in _LEVELS[1:] else None,
        base=bool(base),
    )


def filled(model: ServedModel, asked: Asked | None) -> list[Any]:
    """The fields for a model: as a link asks it, or as it was trained.

    Raises:
        RequestError: the link holds questions that are none.
    """
    takes_grid = model.with_other_grid is not None
    questions = model.predictor.questions if asked is None or asked.questions is None else asked.questions
    slots = slots_of(questions)
    gives_numbers = model.gives_numbers or takes_grid
    asks_number = model.gives_numbers if asked is None else gives_numbers and asked.questions is None
    grid = asked.grid if asked is not None else ""
    if takes_grid and not grid:
        grid = ", ".join(model.predictor.grid.texts) if model.predictor.has_grid else "1..5"
    shown = max(1, sum(not slot.is_empty for slot in slots))
    calibrated = model.is_calibrated or model.question_calibration is not None
    interval = usual_level(model) if asked is None else asked.interval
    level = "none" if interval is None else f"{interval:g}"
    samples = [[text] for text in examples_of(model)]
    return [
        gr.update(value=model.name),
        gr.update() if asked is None else gr.update(value=asked.text),
        gr.update(value=_NUMBER if asks_number else _QUESTIONS, visible=gives_numbers),
        gr.update(value=grid if takes_grid else "", visible=takes_grid and asks_number),
        gr.update(value=level if level in _LEVELS else "none", visible=calibrated),
        gr.update(value=model.base is not None and (asked is None or asked.base), visible=model.base is not None),
        *(value for slot in slots for value in fields_of(slot)),
        *(gr.update(visible=place < shown) for place in range(SLOTS)),
        gr.update(visible=not asks_number),
        shown,
        gr.update(samples=samples, visible=bool(samples)),
    ]


def page_app(computer: Computer, least_mass: float) -> tuple[ASGIApp, AbstractAsyncContextManager[Any]]:
    """The page as an application, and what has to be entered while it runs.

    Args:
        computer: answers what is asked.
        least_mass: the probability of all labels below which a question is not answered.
    """
    inner = FastAPI(openapi_url=None)
    theme = gr.themes.Default(font=_FONTS[0], font_mono=_FONTS[1])
    gr.mount_gradio_app(
        inner,
        _blocks(computer, least_mass),
        path="/",
        theme=theme,
        css=CSS,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
    )
    return _AtHome(inner), inner.router.lifespan_context(inner)


class _AtHome:
    """Lets no other site read the page's answers, and the page fetch nothing from other sites.

    Args:
        app: the page, as Gradio made it.
    """

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sent(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if not pair[0].lower().startswith(b"access-control-")]
                message = {**message, "headers": [*kept, (b"content-security-policy", _POLICY)]}
            await send(message)

        await self._app(scope, receive, sent)


def _blocks(computer: Computer, least_mass: float) -> gr.Blocks:
    models = computer.models

    async def found(request: gr.Request, *values: Any) -> tuple[str, str]:
        try:
            asked = asked_of(values)
            answers = await ask(computer, asked, least_mass, request.request.is_disconnected)
        except RequestError as error:
            return refused(error.message), ""
        query = asked.query()
        return drawn(answers), query if len(query) <= _LONGEST_LINK else ""

    async def found_of_link(request: gr.Request, *values: Any) -> Any:
        return await found(request, *values) if request.query_params.get("text") else gr.skip()

    def opened(request: gr.Request) -> list[Any]:
        try:
            asked = Asked.of_query(dict(request.query_params))
            return [*filled(models.asked_for((asked and asked.model) or None), asked), gr.skip()]
        except RequestError as error:
            return [*filled(models.asked_for(None), None), refused(error.message)]

    with gr.Blocks(title="raft-peft", analytics_enabled=False, fill_width=True) as blocks:
        gr.Markdown("## raft-peft\nWhat a language model answers, as a number with its distribution.")
        with gr.Row():
            with gr.Column(scale=2, min_width=340):
                fields = _fields(list(models))
                button = gr.Button("Ask", variant="primary", elem_id="ask")
            with gr.Column(scale=3, min_width=340):
                result = gr.HTML(elem_id="found", padding=False)
                query = gr.Textbox(visible=False)
                link = gr.Textbox(
                    label="Link to what is shown", buttons=["copy"], interactive=False, max_lines=1, elem_id="link"
                )
        silent: dict[str, Any] = {"queue": False, "api_visibility": "private"}
        gr.on([button.click, fields.text.submit], found, fields.inputs, [result, query], **silent).then(
            None, query, link, js=_TO_LINK
        )
        fields.model.input(lambda name: filled(models.asked_for(name), None), fields.model, fields.all, **silent)
        blocks.load(opened, None, [*fields.all, result], **silent).success(
            found_of_link, fields.inputs, [result, query], **silent
        ).then(None, query, link, js=_TO_LINK)
        _add_toggles(fields, computer, silent)
    return blocks


def _fields(names: Sequence[str]) -> _Fields:
    model = gr.Dropdown(list(names), value=names[0], label="Model", visible=len(names) > 1, elem_id="model")
    text = gr.Textbox(label="Text", lines=5, max_lines=20, elem_id="text", placeholder="Write or paste a text")
    examples = gr.Dataset(components=[text], samples=[], label="Examples of the model card", visible=False)
    kind = gr.Radio([_NUMBER, _QUESTIONS], value=_QUESTIONS, label="Ask for", elem_id="kind")
    grid = gr.Textbox(label="Grid: 1..5, or 0, 0.5, 1", visible=False, elem_id="grid")
    slots, groups = [], []
    with gr.Column(visible=False) as questions:
        for place in range(SLOTS):
            with gr.Group(visible=place == 0) as group, gr.Row():
                name = gr.Textbox(label="Name", scale=1, min_width=90, elem_id=f"name-{place}")
                types = [(words, kind) for kind, words in IN_WORDS.items()]
                type_of = gr.Dropdown(types, value=types[0][1], label="Type", scale=1, min_width=110)
                asked = gr.Textbox(label="Question", scale=3, min_width=280, elem_id=f"question-{place}")
                label = WHAT_IS_WRITTEN[types[0][1]]
                criteria = gr.Textbox(label=label, lines=1, scale=3, min_width=280, elem_id=f"criteria-{place}")
            slots.append((name, type_of, asked, criteria))
            groups.append(group)
    count = gr.Number(1, visible=False)
    interval = gr.Dropdown(_LEVELS, value="none", label="Interval that covers", visible=False, elem_id="interval")
    base = gr.Checkbox(label="Beside it the base model, without the adapter", visible=False, elem_id="base")
    return _Fields(model, text, kind, grid, interval, base, slots, groups, questions, count, examples)


def _add_toggles(fields: _Fields, computer: Computer, silent: dict[str, Any]) -> None:
    """What shows and hides fields."""

    def of_kind(kind: str, name: str) -> list[Any]:
        takes_grid = computer.models.asked_for(name).with_other_grid is not None
        return [gr.update(visible=kind == _QUESTIONS), gr.update(visible=kind == _NUMBER and takes_grid)]

    def one_more(count: float) -> list[Any]:
        shown = min(int(count) + 1, SLOTS)
        return [shown, *(gr.update(visible=place < shown) for place in range(SLOTS))]

    fields.kind.input(of_kind, [fields.kind, fields.model], [fields.questions, fields.grid], **silent)
    with fields.questions:
        more = gr.Button("Add a question", size="sm", elem_id="more")
    more.click(one_more, fields.count, [fields.count, *fields.groups], **silent)
    for _, type_of, _, criteria in fields.slots:
        type_of.change(lambda kind: gr.update(label=WHAT_IS_WRITTEN[kind]), type_of, criteria, **silent)
    fields.examples.click(lambda sample: sample[0], fields.examples, fields.text, **silent)
