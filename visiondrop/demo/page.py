"""The page's layout and what its buttons call; Gradio does the queue, the sessions and the form."""

import io
import json
import logging
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from ..errors import VisionDropError
from . import html, media
from .engine import NEW_TOKENS, Engine
from .media import Example
from .state import DEFAULT_METHODS, DEFAULT_TOKENS, MOST_METHODS, OWN, State, check, command_lines, python

logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
WAITING = 16  # requests in the queue; the next is refused
SESSIONS = (
    2 * WAITING
)  # Gradio keeps what a tab's fields and results held, pictures too, of this many tabs (else of 10,000)
COUNT, SHARE = "tokens", "% of the picture's"
PREVIEW = 480  # longest side of a thumbnail's picture, in pixels


class Page:
    """One model's page.

    Attributes:
        engine: runs the requests; model: its folder or hub id, for commands; about: a sentence on it, as HTML.
        examples: those that the model can take.
    """

    def __init__(self, engine: Engine, model: str, about: str):
        self.engine, self.model, self.about = engine, model, about
        video = engine.shape.kind == "video"
        self.examples = {name: e for name, e in media.examples().items() if e.video == video}

    @property
    def first(self) -> str:
        """The example that a fresh page shows."""
        return next(iter(self.examples))

    def build(self) -> gr.Blocks:
        """The page, with its queue."""
        with gr.Blocks(title="VisionDrop", analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML(f'<div class="vd-head"><h1>VisionDrop</h1><p>{self.about}</p></div>')
            with gr.Row():
                with gr.Column(scale=2, min_width=320):
                    inputs, run = self._form()
                with gr.Column(scale=5, min_width=320):
                    results = gr.HTML(WELCOME, elem_id="results", js_on_load=None)
            again = gr.State(False)
            stage = gr.State(None)
            found: dict[str, Any] = dict(
                inputs=[*inputs, stage], outputs=[results, stage], api_name=False, concurrency_id="model"
            )
            blocks.load(self.open_link, None, [*inputs, stage, again, results], api_name=False, queue=False).then(
                self.answer_again,
                inputs=[again, *found["inputs"], results],
                **{k: v for k, v in found.items() if k != "inputs"},
            )
            gr.on([run.click, inputs[1].submit], self.answer, **found)
        blocks.state_session_capacity = SESSIONS
        blocks.queue(max_size=WAITING, default_concurrency_limit=1, api_open=False)
        return blocks

    def _form(self) -> tuple[list[gr.components.Component], gr.Button]:
        """The fields, in the order of `answer`'s arguments, and the button."""
        shape, first = self.engine.shape, self.first
        picture = gr.HTML(
            json.dumps({"example": first}),
            html_template=self._field(),
            js_on_load=(HERE / "picture.js").read_text(encoding="utf-8"),
            elem_id="picture",
        )
        question = gr.Textbox(self.examples[first].question, label="Question", elem_id="question", max_lines=4)
        budget = gr.Slider(
            1, shape.nominal, DEFAULT_TOKENS, step=1, label="Budget: mean visual tokens per layer", elem_id="budget"
        )
        unit = gr.Radio([COUNT, SHARE], value=COUNT, show_label=False, elem_id="unit", container=False)
        share = gr.HTML(self.in_words(DEFAULT_TOKENS, COUNT), elem_id="share")
        methods = gr.Dropdown(
            self.engine.methods,
            value=list(DEFAULT_METHODS),
            multiselect=True,
            max_choices=MOST_METHODS,
            allow_custom_value=True,
            label="Methods",
            info="Any of the catalogue, two joined by +, options after a space: visiondrop merge=off",
            elem_id="methods",
        )
        run = gr.Button("Compare", variant="primary", elem_id="run")
        quiet = dict(queue=False, show_progress="hidden", api_name=False)
        picture.change(self.question_of, [picture, question], question, **quiet)
        unit.input(self.convert, [budget, unit], budget, **quiet).then(self.in_words, [budget, unit], share, **quiet)
        budget.change(self.in_words, [budget, unit], share, **quiet)
        return [picture, question, budget, unit, methods], run

    def _field(self) -> str:
        """The picture's field."""
        thumbs = "".join(_thumb(name, example) for name, example in self.examples.items())
        what = "video" if self.engine.shape.kind == "video" else "picture"
        kinds = "image/*,video/*" if what == "video" else "image/*"
        return (
            f'<div class="vd-drop" tabindex="0" role="button" aria-label="Choose a {what}" data-most="{media.MOST_BYTES}">'
            '<div class="vd-preview"><img hidden alt="the chosen picture"><video hidden controls muted loop></video></div>'
            f'<p class="vd-hint">Drop a {what} here, paste one, or click to choose a file</p></div>'
            f'<input type="file" accept="{kinds}" hidden><p class="vd-said" role="alert" hidden></p>'
            f'<div class="vd-thumbs">{thumbs}</div>'
        )

    def question_of(self, picture: str, question: str) -> Any:
        """An example brings its question; another picture leaves what is there."""
        name = _given(picture).get("example")
        return self.examples[name].question if name in self.examples else question

    def convert(self, budget: float, unit: str) -> Any:
        """The slider in its other unit, at the same budget."""
        most = self.engine.shape.nominal
        if unit == SHARE:
            return gr.Slider(1, 100, max(1, round(100 * budget / most)), step=1)
        return gr.Slider(1, most, max(1, round(budget * most / 100)), step=1)

    def in_words(self, budget: float, unit: str) -> str:
        """The budget in both units."""
        most = self.engine.shape.nominal
        count = budget if unit == COUNT else budget * most / 100
        return f'<span class="vd-dim">{count:.0f} of {most} tokens, {100 * count / most:.1f} %</span>'

    def open_link(self, request: gr.Request) -> list[Any]:
        """The fields, the stage, whether to answer at once, and what stands in place of results, from a link."""
        found = [(k, v) for k, v in request.query_params.multi_items() if not k.startswith("__")]
        nothing = [gr.skip()] * 5
        if not found:
            return [*nothing, None, False, WELCOME]
        try:
            state = State.read(found)
            if state.picture not in {OWN, *self.examples}:
                raise VisionDropError(f"The link's picture {state.picture[:40]!r} is no example of this page.")
        except VisionDropError as error:
            return [*nothing, None, False, html.refusal(str(error))]
        share, most = isinstance(state.tokens, str), self.engine.shape.nominal
        value = float(str(state.tokens).rstrip("%"))
        fields = [
            json.dumps({} if state.picture == OWN else {"example": state.picture}),
            state.question,
            gr.Slider(1, 100 if share else most, value, step=1),
            SHARE if share else COUNT,
            list(state.methods),
        ]
        own = state.picture == OWN
        return [*fields, state.stage, not own, html.refusal(MISSING.format(mark=state.mark)) if own else WELCOME]

    def answer_again(self, again: bool, *fields: Any) -> Any:
        """What a link asks for, once its fields are filled in."""
        return self.answer(*fields[:-1]) if again else (fields[-1], None)

    def answer(
        self, picture: str, question: str, budget: float, unit: str, methods: list[str], stage: int | None
    ) -> tuple[str, None]:
        """Results as HTML, or the sentence that says why there are none; the link's stage is used once."""
        try:
            return self._answer(picture, question, budget, unit, methods, stage), None
        except VisionDropError as error:
            return html.refusal(str(error)), None
        except MemoryError:
            return html.refusal("This machine's memory is too small for the request: take a smaller picture."), None
        except Exception as error:  # the page stays up, and its owner finds the trace in the log
            logger.exception("a request failed")
            return html.refusal(
                f"Something went wrong inside ({type(error).__name__}); the log of the demo says more."
            ), None

    def _answer(
        self, picture: str, question: str, budget: float, unit: str, methods: list[str], stage: int | None
    ) -> str:
        given = _given(picture)
        tokens = f"{budget:g}%" if unit == SHARE else int(budget)
        state = State(str(given.get("example") or OWN), question or "", tokens, tuple(methods or ()), stage)
        check(state)
        if state.picture == OWN:
            url = str(given.get("data") or "")
            opened, file = media.from_url(url), Path(str(given.get("name") or "picture.png")).name
            state = replace(state, mark=media.mark_of(url))
        else:
            path = media.example(state.picture).path
            opened, file = media.open_picture(path), str(path)
        found = self.engine.compare(opened, state.question, state.tokens, state.methods)
        runnable = replace(state, methods=tuple(o.method for o in found.outcomes if not o.error))
        dtype = str(self.engine.loaded.model.dtype).removeprefix("torch.")
        code = [make(runnable, self.model, file, NEW_TOKENS, dtype) for make in (command_lines, python)]
        return html.results(found, state, *code)


def _given(picture: str | None) -> dict[str, Any]:
    """What the picture's field holds: {"example": name} or {"data": URL, "name": file}."""
    try:
        found = json.loads(picture or "{}")
    except (TypeError, ValueError):
        found = None
    return found if isinstance(found, dict) else {}


def _thumb(name: str, example: Example) -> str:
    about = escape(f"{name}: {example.about}")
    if example.video:
        inside = f'<video src="{example.url}" muted preload="metadata"></video>'
    else:
        small: Any = media.open_picture(example.path)
        data = io.BytesIO()
        small.thumbnail((PREVIEW, PREVIEW))
        small.save(data, "WEBP", quality=85)
        inside = f'<img src="{html.data_url(data.getvalue())}" alt="">'
    return f'<button type="button" class="vd-thumb" data-name="{name}" title="{about}" aria-label="{about}">{inside}</button>'


WELCOME = (
    '<section class="vd-results"><p class="vd-dim">Choose a picture and a question, then press Compare.</p></section>'
)
MISSING = (
    "This link was made with a picture of its owner's (SHA-256 {mark}…), which is not stored here. Everything else is filled "
    "in: load the picture and press Compare."
)
