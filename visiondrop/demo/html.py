"""Results as HTML: per method the answer, the picture stage by stage, the ledger as steps, and times beside the unpruned run.

Pictures are data URLs inside the text, so nothing is written to disk and nothing but the page is served.
"""

import base64
import difflib
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from .engine import Comparison, Outcome, Times
from .fates import INPUT, place_name
from .show import stages
from .state import State

PHASES = ("encode", "select", "prefill", "decode")
WIDE, HIGH = 300, 96  # of a step plot, in its own units
LEFT, BOTTOM, TOP = 34, 16, 8  # its margins


def results(found: Comparison, state: State, shell: str, python: str) -> str:
    """The whole comparison.

    Args:
        state: what was asked, for the link and the slider's place; shell, python: the same as commands and as a program.
    """
    places = _places(found.outcomes)
    at = len(places) - 1 if state.stage is None else min(state.stage, len(places) - 1)
    cards = "".join(_card(outcome, found, places, at) for outcome in found.outcomes)
    times = found.unpruned.times
    assert times is not None  # the unpruned run raises where it fails
    return (
        f'<section class="vd-results" data-query="{escape(state.query())}">'
        f'<p class="vd-unpruned">Unpruned, {found.unpruned.tokens[0]} tokens in every layer: '
        f'<strong class="vd-answer">{_said(found.unpruned.answer)}</strong> '
        f'<span class="vd-dim">in {_ms(times.total)}</span></p>'
        f"{_slider(places, at)}"
        f'<div class="vd-cards">{cards}</div>{_legend()}{_tools(shell, python)}</section>'
    )


def _tools(shell: str, python: str) -> str:
    """The link, and the code behind a button."""
    blocks = "".join(
        f'<h4>{name}</h4><button type="button" class="vd-copy">Copy</button><pre>{escape(code)}</pre>'
        for name, code in (("Command line", shell), ("Python", python))
    )
    return (
        '<div class="vd-tools"><button type="button" class="vd-copy-link">Copy a link to this</button>'
        '<button type="button" class="vd-show-code" aria-expanded="false">Command line and Python</button></div>'
        f'<div class="vd-code" hidden>{blocks}</div>'
    )


def refusal(sentence: str) -> str:
    """A sentence in place of results."""
    return f'<section class="vd-results"><p class="vd-error" role="alert">{escape(sentence)}</p></section>'


def _places(outcomes: Sequence[Outcome]) -> list[int]:
    """The input, and wherever any method has a stage (`Step.order`)."""
    return [INPUT, *sorted({step.order for outcome in outcomes for step in outcome.steps})]


def _slider(places: list[int], at: int) -> str:
    names = "|".join(map(place_name, places))
    return (
        f'<label class="vd-slider"><span>Stage: <output>{place_name(places[at])}</output></span>'
        f'<input type="range" class="vd-range" min="0" max="{len(places) - 1}" value="{at}" step="1" '
        f'data-names="{names}" aria-label="Stage" aria-valuetext="{place_name(places[at])}"></label>'
    )


def _card(outcome: Outcome, found: Comparison, places: list[int], at: int) -> str:
    head = f"<header><h3>{escape(outcome.method)}</h3></header>"
    if outcome.error:
        return f'<article class="vd-card">{head}<p class="vd-error" role="alert">{escape(outcome.error)}</p></article>'
    unpruned = found.unpruned
    assert outcome.times is not None and unpruned.times is not None
    same = outcome.answer == unpruned.answer
    badge = "same as unpruned" if same else "differs from unpruned"
    told = _said(outcome.answer) if same else _difference(unpruned.answer, outcome.answer)
    return (
        f'<article class="vd-card" data-method="{escape(outcome.method)}">{head}'
        f'<p><strong class="vd-answer">{told}</strong> '
        f'<span class="vd-badge {"vd-same" if same else "vd-differs"}">{badge}</span></p>'
        f"{_pictures(outcome, found, places, at)}"
        f"{_ledger(outcome, found.unpruned.tokens[0])}"
        f"{_times(outcome.times, unpruned.times)}"
        f"<details><summary>Ledger in words</summary><pre>{escape(outcome.told)}</pre></details></article>"
    )


def _said(answer: str) -> str:
    return escape(answer) if answer else '<em class="vd-dim">no words</em>'


def _difference(before: str, after: str) -> str:
    """The answer with what is not in the unpruned one marked, and what is missing struck out."""
    old, new = before.split(), after.split()
    out = []
    for kind, a, b, c, d in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        gone, come = escape(" ".join(old[a:b])), escape(" ".join(new[c:d]))
        if kind == "equal":
            out.append(come)
            continue
        out += [f"<del>{gone}</del>"] if gone else []
        out += [f"<ins>{come}</ins>"] if come else []
    return " ".join(out) or _said("")


def _pictures(outcome: Outcome, found: Comparison, places: list[int], at: int) -> str:
    """All stages of one method; one is shown, the slider chooses which."""
    if not found.units:
        counts = ", ".join(step.title for step in outcome.steps)
        return f'<p class="vd-dim">This model resamples its tokens, which lie on no grid of the picture: {escape(counts)}.</p>'
    drawn = stages(found.units, found.grid, outcome.steps)
    numbers = [INPUT, *(step.order for step in outcome.steps)]
    at_place = [max(i for i, number in enumerate(numbers) if number <= place) for place in places]
    strip = " vd-strip" if len(found.units) > 1 else ""
    captions = [f"the input, {_patches(found)} patches", *(step.title for step in outcome.steps)]
    out = [f'<div class="vd-stages" data-map="{",".join(map(str, at_place))}">']
    for i, (picture, caption) in enumerate(zip(drawn, captions)):
        hidden = "" if i == at_place[at] else " hidden"
        words = escape(caption)
        out.append(
            f'<figure{hidden}><div class="vd-frame{strip}"><img src="{_url(picture)}" alt="{words}" '
            f'width="{picture.width}" height="{picture.height}"></div><figcaption>{words}</figcaption></figure>'
        )
    return "".join(out) + "</div>"


def _patches(found: Comparison) -> int:
    """Those of all crops or frames."""
    return len(found.units) * found.grid[0] * found.grid[1]


def _url(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=82, method=2)
    return data_url(data.getvalue())


def data_url(data: bytes) -> str:
    """A WebP file as a data URL."""
    return "data:image/webp;base64," + base64.b64encode(data).decode()


def _ledger(outcome: Outcome, unpruned: int) -> str:
    """Tokens per layer as steps, with the unpruned count and the mean as lines."""
    tokens, top = list(outcome.tokens), max(unpruned, *outcome.tokens, 1)
    width = (WIDE - LEFT - 4) / len(tokens)

    def x(layer: float) -> float:
        return round(LEFT + layer * width, 1)

    def y(count: float) -> float:
        return round(HIGH - BOTTOM - count / top * (HIGH - BOTTOM - TOP), 1)

    path = f"M{x(0)} {y(tokens[0])}" + "".join(
        f"H{x(i + 1)}" + (f"V{y(tokens[i + 1])}" if i + 1 < len(tokens) else "") for i in range(len(tokens))
    )
    under = f"{path}V{y(0)}H{x(0)}Z"
    mean = outcome.mean
    title = f"Tokens per layer: {', '.join(map(str, tokens))}; mean {mean:.1f}"
    return (
        f'<figure class="vd-ledger"><svg viewBox="0 0 {WIDE} {HIGH}" role="img" aria-label="{title}"><title>{title}</title>'
        f'<path class="vd-under" d="{under}"/><path class="vd-steps" d="{path}"/>'
        f'<path class="vd-line" d="M{x(0)} {y(unpruned)}H{x(len(tokens))}"/>'
        f'<path class="vd-mean" d="M{x(0)} {y(mean)}H{x(len(tokens))}"/>'
        f'<text x="{LEFT - 4}" y="{y(unpruned) + 4}" text-anchor="end">{unpruned}</text>'
        f'<text x="{LEFT - 4}" y="{y(0)}" text-anchor="end">0</text>'
        f'<text x="{LEFT}" y="{HIGH - 4}">layer 0</text>'
        f'<text x="{WIDE - 4}" y="{HIGH - 4}" text-anchor="end">{len(tokens) - 1}</text></svg>'
        f"<figcaption>{mean:.1f} tokens per layer in the mean, {100 * mean / unpruned:.1f} % of {unpruned}</figcaption>"
        "</figure>"
    )


def _times(mine: Times, unpruned: Times) -> str:
    """Two stacked bars on one scale, and the numbers."""
    longest = max(mine.total, unpruned.total)
    rows = "".join(
        f'<tr><th scope="row"><i class="vd-{phase}"></i>{phase}</th>'
        f"<td>{_ms(getattr(unpruned, phase))}</td><td>{_ms(getattr(mine, phase))}</td></tr>"
        for phase in PHASES
    )
    return (
        '<table class="vd-times"><thead><tr><th scope="col">time</th><th scope="col">unpruned</th>'
        f'<th scope="col">this method</th></tr></thead><tbody>{rows}'
        f'<tr class="vd-sum"><th scope="row">in all</th><td>{_ms(unpruned.total)}</td><td>{_ms(mine.total)}</td></tr>'
        f'</tbody></table><div class="vd-bars" aria-hidden="true">{_bar(unpruned, longest)}{_bar(mine, longest)}</div>'
    )


def _bar(times: Times, longest: float) -> str:
    parts = "".join(
        f'<i class="vd-{phase}" style="width:{100 * getattr(times, phase) / longest:.2f}%"></i>' for phase in PHASES
    )
    return f'<div class="vd-bar">{parts}</div>'


def _ms(seconds: float) -> str:
    return (
        f"{seconds:.2f} s"
        if seconds >= 10
        else f"{1000 * seconds:.0f} ms"
        if seconds >= 0.01
        else f"{1000 * seconds:.1f} ms"
    )


def _legend() -> str:
    return (
        '<p class="vd-dim vd-legend">Bright: kept. Framed: stands for the patches merged into it, which are tinted with its '
        "colour. Dark: dropped. Dashed line: unpruned; dotted line: the mean. Times are those of one run.</p>"
    )
