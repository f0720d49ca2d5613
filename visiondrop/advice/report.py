"""What the user reads: a table, a sentence, the lines that use the setting, a plot, and a page of pictures."""

import base64
import html
import io
from pathlib import Path
from typing import Any

from ..demo.show import sheet
from ..errors import VisionDropError
from .measure import prepare, under
from .samples import Sample
from .settings import Setting

SERVED = (  # done before decoder layer 1, and vLLM has what they read
    *("visionzip", "vispruner", "visiondrop-encoder", "divprune", "scope", "holov", "hiprune", "prunesid", "flowcut"),
    *("random", "uniform", "pool"),
)


def text(advice: Any) -> str:
    """Table, sentence and lines of use."""
    return "\n".join([table(advice), "", sentence(advice), "", *use(advice), *_told(advice.problems)])


def table(advice: Any) -> str:
    """One line per setting; * = on the front of tokens changed against time to first token."""
    head = (
        f"  {'setting':<22}{'same top p':>11}  {'95 % interval':<15}{'mean KLD':>9}{'same answers':>14}{'accuracy':>10}"
        f"{'first token':>13}{'per token':>11}{'cache':>10}{'TFLOPs':>9}{'n':>6}"
    )
    lines = [head]
    for s in advice.found:
        accuracy = "-" if s.accuracy is None else f"{100 * s.accuracy:.1f} %"
        between = f"[{100 * s.interval[0]:.1f}, {100 * s.interval[1]:.1f}]"
        lines.append(
            f"{'*' if s.front else ' '} {s.name:<22}{100 * s.agreement:>9.1f} %  {between:<15}{s.kl:>9.4f}"
            f"{100 * s.same_answers:>12.1f} %{accuracy:>10}{1000 * s.first:>10.1f} ms{1000 * s.later:>8.1f} ms"
            f"{s.cache / 2**20:>6.1f} MiB{s.tflops:>9.4g}{s.samples:>6}{'  dropped early' if s.dropped else ''}"
        )
    lines.append(
        f"{advice.samples} samples in {advice.seconds:.0f} s. same top p: answer tokens whose first choice is the unpruned "
        "model's; mean KLD: nats per token. Agreement with the unpruned model is not correctness."
    )
    return "\n".join(lines)


def sentence(advice: Any) -> str:
    """The recommendation, or that nothing passes and what is nearest."""
    best, close = advice.best, advice.nearest
    if best is None:
        return (
            f"Nothing keeps the change within {100 * advice.loss:g} % of next tokens; nearest is {close.name}: "
            f"{_said(close)}."
        )
    sure = "" if 1 - best.interval[0] <= advice.loss else "; more samples are needed to exclude a larger change"
    cheaper = [s for s in advice.found[1:] if s.tflops < best.tflops and s is not best]
    more = max(cheaper, key=lambda s: s.agreement, default=None)
    then = f"; {more.name} would change {100 * more.loss:.1f} %" if more is not None else ""
    return f"{best.name}: {_said(best)}{then}{sure}."


def _said(s: Any) -> str:
    low, high = (100 * x for x in s.interval)
    times = f"{s.speedup:.1f} times {'sooner' if s.speedup >= 1 else 'as soon'}"
    return f"{100 * s.agreement:.1f} % [{low:.1f}, {high:.1f}] of next tokens unchanged, first token {times}"


def use(advice: Any) -> list[str]:
    """Python, command line and server for the recommended setting."""
    if advice.best is None:
        return []
    method, _, tokens = advice.best.name.partition(":")
    budget = tokens if tokens.isdigit() else repr(tokens)
    served = f"visiondrop serve MODEL --method {method} --tokens {tokens}   # docs/serving.md"
    if method not in SERVED:
        served = f"# visiondrop serve: {method} goes on inside the decoder or reads the question, which vLLM cannot do"
    return [
        "import visiondrop",
        f'handle = visiondrop.apply(model, method="{method}", tokens={budget})',
        "answer = model.generate(...)",
        "",
        f"python -m visiondrop ask --model MODEL --image PICTURE --question QUESTION --method {method} --tokens {tokens}",
        served,
    ]


def _told(problems: list[str]) -> list[str]:
    return ["", *(f"left out: {p}" for p in problems)] if problems else []


def plot(advice: Any, path: Path) -> None:
    """Share of tokens changed against time to first token."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise VisionDropError("the plot needs matplotlib: pip install matplotlib") from error
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    for s in advice.found[1:]:
        low, high = (max(0.0, 100 * (s.loss - (1 - s.interval[1]))), max(0.0, 100 * (1 - s.interval[0] - s.loss)))
        colour = "#0072B2" if s.front else "#999999"
        axes.errorbar(1000 * s.first, 100 * s.loss, [[low], [high]], fmt="o", color=colour, capsize=2)
        axes.annotate(s.name, (1000 * s.first, 100 * s.loss), fontsize=7, xytext=(4, 4), textcoords="offset points")
    axes.axhline(100 * advice.loss, color="#D55E00", linewidth=1)
    axes.set(xlabel="time to first token, ms", ylabel="next tokens that change, %")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def page(advice: Any, handle: Any, loaded: Any, samples: list[Sample], answers: dict[int, dict], path: Path) -> None:
    """One static HTML file: the pictures on which the setting changed most, with their kept patches.

    Args:
        handle: applied with report=True; answers: by sample, the unpruned ones.
    """
    shown = advice.best or advice.nearest
    method, _, tokens = shown.name.partition(":")
    budget: Any = int(tokens) if tokens.isdigit() else tokens
    parts = [f"<p>{html.escape(sentence(advice))}</p><pre>{html.escape(table(advice))}</pre>"]
    for i in advice.changed:
        sample, inputs = samples[i], prepare(loaded, samples[i])
        with under(handle, Setting(method, budget)):
            ids = loaded.generate(inputs, do_sample=False, max_new_tokens=64)[0]
            picture = _drawn(sample, inputs, handle, loaded)
        handle.reset()
        parts.append(
            f"<h2>{html.escape(sample.place or str(i))}</h2>{picture}<p><b>{html.escape(sample.question)}</b><br>unpruned: "
            f"{html.escape(answers[i]['text'])}<br>{html.escape(shown.name)}: {html.escape(loaded.text(ids))}</p>"
        )
    style = "body{font-family:sans-serif;margin:2em}img{max-width:100%}pre{overflow:auto;font-size:.8em}"
    title = f"Where {html.escape(shown.name)} changed most"
    body = "".join(parts)
    path.write_text(
        f'<!doctype html><meta charset="utf-8"><title>{title}</title><style>{style}</style><h1>{title}</h1>{body}',
        encoding="utf-8",
    )


def _drawn(sample: Sample, inputs: dict[str, Any], handle: Any, loaded: Any) -> str:
    """The kept patches; the first picture itself where there are several, or its tokens lie on no grid."""
    pictures, data = sample.open(), io.BytesIO()
    seen = loaded.seen(inputs) if len(pictures) == 1 else None
    if seen is not None and handle.report.stages:
        units, grid = seen
        picture = sheet(units, grid, handle.report)
    else:
        picture = pictures[0]
        picture.thumbnail((336, 336))
    picture.save(data, format="PNG")
    return f'<img alt="kept patches" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">'
