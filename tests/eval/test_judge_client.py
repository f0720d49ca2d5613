"""The judge's client against a real HTTP server on loopback: answers, load, timeouts, garbage, keys, resuming."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.errors import EvaluationError
from eval.scoring import judge as judging
from eval.scoring.judge import Judge, Verdict, judge_samples, metrics, read_verdict

YES, NO = "{'pred': 'yes', 'score': 5}", '{"pred": "No", "score": 1.9}'


class Server:
    """A chat endpoint that follows a script; `seen` holds every request (path, headers, body)."""

    def __init__(self):
        self.seen, self.script = [], lambda number, body: YES
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.seen.append((self.path, dict(self.headers), body))
                outer.respond(self, outer.script(len(outer.seen), body))

            do_GET = do_POST

            def log_message(self, *args):
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    @staticmethod
    def respond(handler, answer) -> None:
        """A text is the model's reply; (code, headers, body) is sent as it is; a number is slept; None hangs up."""
        if answer is None:
            handler.connection.close()
            return
        if isinstance(answer, float):
            time.sleep(answer)
            answer = YES
        if isinstance(answer, str):
            answer = 200, {}, json.dumps({"choices": [{"message": {"role": "assistant", "content": answer}}]})
        code, headers, body = answer
        try:
            handler.send_response(code)
            for name, value in headers.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(body.encode())))
            handler.end_headers()
            handler.wfile.write(body.encode())
        except OSError:
            pass  # the client has stopped waiting


@pytest.fixture
def server():
    it = Server()
    yield it
    it.http.shutdown()
    it.http.server_close()


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")


def client(server, **settings) -> Judge:
    return Judge(server.url, "tiny-judge", **{"timeout": 0.5, "attempts": 4, "pause": 0.01} | settings)


def samples(count: int) -> list[dict]:
    return [
        {"doc_id": i, "doc": {"question": f"What is {i}?", "answer": str(i)}, "answer": f"It is {i}."}
        for i in range(count)
    ]


@pytest.mark.parametrize(
    "reply, verdict",
    [
        (YES, Verdict(True, 5)),
        (NO, Verdict(False, 1)),
        ("Sure! {'pred': 'YES', 'score': '3'} Anything else?", Verdict(True, 3)),
        ("```python\n{'pred': 'no', 'score': 0}\n```", Verdict(False, 0)),
        ("yes", None),
        ("{'pred': 'maybe', 'score': 3}", None),
        ("{'pred': 'yes', 'score': 7}", None),
        ("{'pred': 'yes'}", None),
        ("{'pred': 'yes', 'score': nan}", None),
        ("{'pred': __import__('os'), 'score': 3}", None),
        ("", None),
    ],
)
def test_reading_a_verdict(reply, verdict):
    assert read_verdict(reply) == verdict


def test_request_follows_the_protocol(server):
    assert client(server).ask("Who runs?", "a dog", "The dog runs.") == YES
    (path, headers, body), *more = server.seen
    assert not more and path == "/v1/chat/completions"
    assert headers["Authorization"] == "Bearer sk-secret-123"
    assert body["temperature"] == 0 and body["model"] == "tiny-judge"
    system, user = body["messages"]
    assert (system["role"], user["role"]) == ("system", "user")
    assert all(text in user["content"] for text in ("Who runs?", "a dog", "The dog runs.", "'pred'", "'score'"))


def test_without_a_key_none_is_sent(server, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    client(server).ask("q", "a", "p")
    assert "Authorization" not in server.seen[0][1]


@pytest.mark.parametrize(
    "trouble",
    [
        (429, {}, "slow down"),
        (429, {"Retry-After": "0"}, "slow down"),
        (500, {}, "oops"),
        (503, {}, ""),
        (200, {}, "no json {"),
        (200, {}, '{"choices": []}'),
        (200, {}, '{"choices": [{"message": {"content": null}}]}'),
        None,
        2.0,
    ],
    ids=["429", "retry-after", "500", "503", "garbage", "empty", "null", "hang-up", "timeout"],
)
def test_passing_trouble_is_asked_again(server, trouble):
    server.script = lambda number, body: trouble if number <= 2 else NO
    assert client(server, timeout=0.3).ask("q", "a", "p") == NO
    assert len(server.seen) == 3


def test_waits_grow(server):
    moments = []

    def script(number, body):
        moments.append(time.monotonic())
        return (429, {}, "")

    server.script = script
    with pytest.raises(EvaluationError, match="4 attempts.*HTTP 429"):
        client(server, pause=0.05).ask("q", "a", "p")
    gaps = [b - a for a, b in zip(moments, moments[1:])]
    assert len(gaps) == 3 and gaps[0] >= 0.05 and gaps[1] >= 0.1 and gaps[2] >= 0.2


@pytest.mark.parametrize(
    "code, word", [(401, "OPENAI_API_KEY"), (404, "--judge-url"), (400, "--judge-model"), (307, "redirects")]
)
def test_refusals_are_not_asked_again(server, code, word):
    headers = {"Location": "http://127.0.0.1:9/elsewhere"} if code == 307 else {}
    server.script = lambda number, body: (code, headers, "sk-secret-123 is wrong")
    with pytest.raises(EvaluationError, match=word) as caught:
        client(server).ask("q", "a", "p")
    assert len(server.seen) == 1 and "sk-secret" not in str(caught.value)


def test_nobody_there_is_one_sentence():
    with pytest.raises(EvaluationError, match="2 attempts") as caught:
        Judge("http://127.0.0.1:9/v1", "m", timeout=0.2, attempts=2, pause=0.01).ask("q", "a", "p")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://host/v1", "host/v1", "http://user:pw@host/v1", "http://host/v1?key=1", "http://host:x/v1"]
)
def test_strange_addresses_are_refused(url):
    with pytest.raises(EvaluationError, match="--judge-url"):
        Judge(url, "m")


def test_every_verdict_is_stored_and_none_asked_twice(server, tmp_path):
    server.script = lambda number, body: "hm" if "What is 3?" in body["messages"][1]["content"] else YES
    verdicts = judge_samples(samples(6), client(server), tmp_path)
    assert verdicts == [Verdict(True, 5)] * 3 + [None] + [Verdict(True, 5)] * 2
    assert metrics(verdicts) == {"judge_accuracy": 1.0, "judge_score": 5.0, "judge_unparsable": 1.0}
    assert len(server.seen) == 6
    assert judge_samples(samples(6), client(server), tmp_path) == verdicts and len(server.seen) == 6
    judge_samples(samples(8), client(server), tmp_path)
    assert len(server.seen) == 8
    judge_samples(samples(6), Judge(server.url, "another"), tmp_path)  # another judge starts afresh
    assert len(server.seen) == 14
    written = "".join(f.read_text() for f in tmp_path.rglob("*.jsonl"))
    assert written.count("hm") == 1 + 1 and "sk-secret" not in written


def test_a_broken_off_run_goes_on_where_it_stopped(server, tmp_path):
    server.script = lambda number, body: NO if number <= 5 else (503, {}, "")
    with pytest.raises(EvaluationError, match=r"the \d+ verdicts stored so far are kept"):
        judge_samples(samples(12), client(server, attempts=2), tmp_path)
    kept = sum(f.read_bytes().count(b"\n") for f in tmp_path.rglob("*.jsonl"))
    assert 1 <= kept <= 5
    before, server.script = len(server.seen), lambda number, body: YES
    verdicts = judge_samples(samples(12), client(server), tmp_path)
    assert len(server.seen) - before == 12 - kept
    assert [v.right for v in verdicts].count(False) == kept


def test_an_interrupt_does_not_wait_for_the_rest(server, tmp_path, monkeypatch):
    server.script = lambda number, body: YES if number == 1 else (503, {}, "")
    monkeypatch.setattr(judging.AnswerStore, "add", lambda self, entries: (_ for _ in ()).throw(KeyboardInterrupt))
    began, others = time.monotonic(), set(threading.enumerate())  # idle pools of other tests are none of ours
    with pytest.raises(KeyboardInterrupt):
        judge_samples(samples(8), client(server, pause=30.0), tmp_path)
    for thread in set(threading.enumerate()) - others:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join(5)
            assert not thread.is_alive()
    assert time.monotonic() - began < 10


def test_a_key_in_a_reply_is_not_kept(server, tmp_path):
    server.script = lambda number, body: "sk-secret-123 " + YES
    assert judge_samples(samples(1), client(server), tmp_path) == [Verdict(True, 5)]
    assert "sk-secret" not in "".join(f.read_text() for f in tmp_path.rglob("*.jsonl"))


def test_a_judge_that_only_babbles_is_refused():
    with pytest.raises(EvaluationError, match="none of the judge's 2 replies"):
        metrics([None, None])
    assert metrics([Verdict(True, 4), Verdict(False, 1), None])["judge_accuracy"] == 0.5
    assert judging.WORKERS >= 1
