"""Free-form answers judged by a language model: yes or no and a mark from 0 to 5, or MM-Vet's mark from 0 to 1.

Videos: the protocol is that of Video-ChatGPT and Video-LLaVA (question, right answer and given answer go to a chat model, which
returns a small dictionary); the wording is ours.  MM-Vet: its authors' prompt with their worked examples, as lmms-eval has it.  The
judge is any OpenAI-compatible endpoint.  Every reply is stored
as it comes, so a second start asks only what is missing; a reply that is no verdict is counted and shown, never
guessed.
No `openai` client: it follows redirects, which may carry the key elsewhere, and knows nothing of a stop that ends all waits.
The key is read from the environment variable OPENAI_API_KEY and goes nowhere but into the request's header.

    accuracy = yes / (yes + no);  score = mean of the marks, cut to whole numbers, over the readable verdicts
"""

import ast
import hashlib
import importlib.util
import ipaddress
import json
import math
import os
import random
import re
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tqdm import tqdm

from eval.benchmarks import Benchmark
from eval.errors import EvaluationError
from eval.results.answers import AnswerStore, question_key
from eval.results.folder import RunFolder

KEY_VARIABLE = "OPENAI_API_KEY"
WORKERS = 4
MARKS = (0, 5)
SYSTEM = (
    "You grade answers to questions about videos. Decide whether the given answer means the same as the right answer. "
    "Synonyms, paraphrases and fuller sentences count as the same if they agree in meaning; a contradiction does not."
)
USER = (
    "Question: {question}\nRight answer: {answer}\nGiven answer: {prediction}\n\n"
    "Reply with a Python dictionary and nothing else. Its key 'pred' is 'yes' if the given answer is right and 'no' if "
    "not; its key 'score' is a whole number from 0 (unrelated) to 5 (the same meaning). "
    "Example: {{'pred': 'yes', 'score': 4}}"
)


@dataclass(frozen=True)
class Verdict:
    """One readable reply: right or not, and the mark 0 … 5, of MM-Vet 0 … 1."""

    right: bool
    mark: float


def read_verdict(reply: str) -> Verdict | None:
    """The verdict in a reply, or None: a dictionary with `pred` (yes/no) and `score` (a number in 0 … 5)."""
    match = re.search(r"\{[^{}]*\}", reply)
    if match is None:
        return None
    for read in (ast.literal_eval, json.loads):
        try:
            content = read(match.group())
            said, mark = str(content["pred"]).strip().lower(), float(content["score"])
        except (ValueError, SyntaxError, TypeError, KeyError, MemoryError, RecursionError):
            continue
        if said in ("yes", "no") and MARKS[0] <= mark <= MARKS[1]:
            return Verdict(said == "yes", math.floor(mark))
    return None


def read_mark(reply: str) -> Verdict | None:
    """MM-Vet's mark, the first word of a reply, or None."""
    try:
        mark = float(reply.split()[0])
    except (ValueError, IndexError):
        return None
    return Verdict(mark == 1, mark) if 0 <= mark <= 1 else None


@cache
def mmvet_prompt() -> str:
    """The prompt of lmms-eval's task, read from its file: importing it asks for a key of OpenAI's client."""
    spec = importlib.util.find_spec("lmms_eval")
    file = Path(next(iter(spec.submodule_search_locations))) / "tasks" / "mmvet" / "utils.py"
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "MM_VET_PROMPT":
            return ast.literal_eval(node.value)
    raise EvaluationError(
        f"{file} holds no MM_VET_PROMPT: install the version of lmms-eval that requirements.txt names"
    )


class Unavailable(EvaluationError):
    """The judge gave no reply that could be used."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would send the key to another address."""

    def redirect_request(self, *args):
        return None


class Judge:
    """A chat model behind an OpenAI-compatible address.

    Attributes:
        name: "MODEL at ADDRESS", as it stands in result rows; form: what is asked and how a reply is read.
        stop: set to make waiting requests give up at once.
    """

    def __init__(
        self, url: str, model: str, timeout: float = 60.0, attempts: int = 6, pause: float = 1.0, form: str = "video"
    ):
        """Check the address; nothing is sent.

        Args:
            url: up to the version, e.g. https://api.openai.com/v1; the path /chat/completions is added.
            timeout: seconds per request; attempts: requests per question; pause: seconds before the
                second one, doubling.
        """
        try:
            parts = urlsplit(url)
            wrong = parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0
        except ValueError:
            wrong = True
        if wrong:
            raise EvaluationError(f"--judge-url {url!r}: give an address such as https://api.openai.com/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise EvaluationError(
                f"--judge-url: leave user, password and query out; the key is taken from ${KEY_VARIABLE}"
            )
        base = url.rstrip("/").removesuffix("/chat/completions")
        self.address, self.model = base + "/chat/completions", model
        self.name = f"{model} at {base}"
        self.timeout, self.attempts, self.pause, self.form = timeout, attempts, pause, FORMS[form]
        self.stop = threading.Event()
        handlers: list = [_NoRedirect]
        if _is_loopback(parts.hostname):
            handlers.append(urllib.request.ProxyHandler({}))
        self._opener = urllib.request.build_opener(*handlers)

    def ask(self, question: str, answer: str, prediction: str) -> str:
        """The judge's reply; waits and asks again after timeouts, refusals for load and unreadable responses.

        Raises:
            Unavailable: no reply after all attempts, or a refusal that asking again cannot change.
        """
        body = {"model": self.model, "temperature": 0, "messages": self.form.messages(question, answer, prediction)}
        problem = ""
        for attempt in range(self.attempts):
            wait = self.pause * 2 ** (attempt - 1) * (1 + random.random() / 4) if attempt else 0.0
            if self.stop.wait(wait):
                raise Unavailable("stopped")
            try:
                return self._post(body)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code} {self._clean(error.reason)}"
                told = error.headers.get("Retry-After") if error.headers else None
                error.close()
                if error.code != 429 and error.code < 500 and error.code != 408:
                    raise Unavailable(f"the judge {self.name} refuses: {problem}; {_advice(error.code)}") from None
                if told and told.isdigit():
                    self.stop.wait(min(int(told), 60))
            except (OSError, ValueError) as error:  # timeouts, broken connections, bodies that are no JSON
                problem = self._clean(str(getattr(error, "reason", error)) or type(error).__name__)
        raise Unavailable(
            f"the judge {self.name} gave no usable reply in {self.attempts} attempts (last: {problem}); check "
            "--judge-url and --judge-model, or try again later"
        )

    def _post(self, body: dict) -> str:
        headers = {"Content-Type": "application/json"}
        if os.environ.get(KEY_VARIABLE):
            headers["Authorization"] = f"Bearer {os.environ[KEY_VARIABLE]}"
        request = urllib.request.Request(self.address, json.dumps(body).encode(), headers)
        with self._opener.open(request, timeout=self.timeout) as response:
            content = json.loads(response.read())
        try:
            reply = content["choices"][0]["message"]["content"]
        except (KeyError, IndexError, TypeError):
            reply = None
        if not isinstance(reply, str):
            raise ValueError("a response without choices[0].message.content")
        return self._clean(reply)

    @staticmethod
    def _clean(text: Any) -> str:
        """The text without the key, should a server send it back."""
        key = os.environ.get(KEY_VARIABLE)
        return str(text).replace(key, "***") if key else str(text)


def messages(question: str, answer: str, prediction: str) -> list[dict[str, str]]:
    """The chat that is sent."""
    user = USER.format(question=question, answer=answer, prediction=prediction)
    return [{"role": "system", "content": SYSTEM}, {"role": "user", "content": user}]


def graded(question: str, answer: str, prediction: str) -> list[dict[str, str]]:
    """MM-Vet's single turn: the worked examples, then this question's line, left open."""
    true = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return [{"role": "user", "content": f"{mmvet_prompt()}\n{question} | {true} | {prediction} |"}]


@dataclass(frozen=True)
class Form:
    """What a judge is asked, and how its reply is read."""

    messages: Callable[[str, str, str], list[dict[str, str]]]
    read: Callable[[str], Verdict | None]


FORMS = {"video": Form(messages, read_verdict), "mmvet": Form(graded, read_mark)}


def judge_samples(samples: list[dict[str, Any]], judge: Judge, folder: Path) -> list[Verdict | None]:
    """Verdicts for samples (doc_id, doc with `question` and `answer`, answer), asking only for those not yet stored.

    Args:
        folder: the run's folder; replies are kept in its folder judge-XXXXXXXX, named after the judge.

    Raises:
        EvaluationError: the judge is not available; what it has said is kept.
    """
    store = AnswerStore(folder / f"judge-{hashlib.sha256(judge.name.encode()).hexdigest()[:8]}")
    try:
        keys = [_key(sample, judge) for sample in samples]
        waiting = {key: sample for key, sample in zip(keys, samples) if store.get(key) is None}
        with tqdm(total=len(samples), initial=len(samples) - len(waiting), desc="verdicts", unit="q") as bar:
            _ask_all(waiting, judge, store, bar)
        return [judge.form.read(store.get(key)) for key in keys]
    finally:
        store.close()


def _ask_all(waiting: dict[str, dict], judge: Judge, store: AnswerStore, bar) -> None:
    """Ask for all, storing replies as they come; after a failure what is under way is awaited and kept too."""
    pool, failure = ThreadPoolExecutor(WORKERS), None
    try:
        asked = {
            pool.submit(judge.ask, s["doc"]["question"], s["doc"]["answer"], s["answer"]): (key, s["doc_id"])
            for key, s in waiting.items()
        }
        for future in as_completed(asked):
            try:
                reply = future.result()
            except CancelledError:
                continue
            except Unavailable as error:
                failure = failure or error
                for other in asked:
                    other.cancel()
                continue
            store.add([(*asked[future], reply)])
            bar.update()
    except BaseException:  # an interrupt, a full disk: nobody waits for the rest
        judge.stop.set()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if failure is not None:
        raise Unavailable(f"{failure}; the {len(store)} verdicts stored so far are kept")


def _key(sample: dict[str, Any], judge: Judge) -> str:
    doc = sample["doc"]
    *system, user = judge.form.messages(doc["question"], doc["answer"], sample["answer"])
    told = {"judge": judge.name, "temperature": 0} | {turn["role"]: turn["content"] for turn in system}
    return question_key(sample["doc_id"], user["content"], told)


def metrics(verdicts: list[Verdict | None]) -> dict[str, float]:
    """Accuracy (0 … 1), mean mark, and how many replies were no verdict.

    Raises:
        EvaluationError: no reply was one.
    """
    read = [v for v in verdicts if v is not None]
    if not read:
        raise EvaluationError(
            f"none of the judge's {len(verdicts)} replies is a verdict; choose another --judge-model "
            "(its replies are kept)"
        )
    return {
        "judge_accuracy": sum(v.right for v in read) / len(read),
        "judge_score": sum(v.mark for v in read) / len(read),
        "judge_unparsable": float(len(verdicts) - len(read)),
    }


def judge_of(benchmark: Benchmark, url: str | None, model: str | None) -> Judge | None:
    """The judge that was named, or None for benchmarks without one; nothing is sent.

    Raises:
        EvaluationError: a judge is missing, or given where none is needed.
    """
    if not benchmark.judged:
        if url or model:
            raise EvaluationError(f"--judge-url: {benchmark.title} under protocol {benchmark.protocol} needs no judge")
        return None
    if not (url and model):
        raise EvaluationError(
            f"{benchmark.title} under protocol {benchmark.protocol} is scored by a judge: give --judge-url and "
            "--judge-model (or --protocol offline, which compares words)"
        )
    return Judge(url, model, form=benchmark.form)


def judge_run(folder: RunFolder, judge: Judge) -> None:
    """Add verdicts to the samples of a run and their means to its outcome; what is stored is not asked again."""
    samples, outcome = folder.lines(), folder.outcome()
    verdicts = judge_samples(samples, judge, folder.path)
    for sample, verdict in zip(samples, verdicts, strict=True):
        sample["metrics"]["judge_accuracy"] = None if verdict is None else float(verdict.right)
        sample["metrics"]["judge_score"] = None if verdict is None else verdict.mark
    folder.write(samples, replace(outcome, metrics=outcome.metrics | metrics(verdicts)))


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _advice(code: int) -> str:
    if code in (401, 403):
        return f"set {KEY_VARIABLE} in the environment"
    if 300 <= code < 400:
        return "redirects are not followed, so that the key stays where it was meant to go: give the final --judge-url"
    return "check --judge-url and --judge-model"
