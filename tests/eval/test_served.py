"""A served model answers a run: what it is asked, what is stored, and what is told where it refuses."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from eval import run
from eval.results import rows


class Handler(BaseHTTPRequestHandler):
    """Answers every question with the colour of its picture's middle; refuses what it is told to."""

    def do_GET(self):
        self.reply({"version": "0.32.0"} if self.path == "/version" else {"data": [{"id": "served"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append(body)
        if self.server.sentence:
            return self.reply({"error": {"message": self.server.sentence}}, 400)
        self.reply({"choices": [{"message": {"content": " red "}}]})

    def reply(self, found, status=200):
        data = json.dumps(found).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture
def server():
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.asked, httpd.sentence = [], ""
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


def ask(server, folder, *more) -> int:
    url = f"http://127.0.0.1:{server.server_port}"
    where = ["--out", str(folder / "rows.jsonl"), "--runs", str(folder / "runs"), "--server", url]
    return run.main(["testbed_quick", "--limit", "6", *where, *more])


def test_a_server_is_asked_once_and_the_row_names_it(server, tmp_path):
    told = ("--method", "visionzip", "--tokens", "64", "--batch-size", "3")
    assert ask(server, tmp_path, *told) == 0
    (row,) = rows.load(tmp_path / "rows.jsonl", strict=True)[0]
    assert row["served"] == "vllm 0.32.0" and row["ledger"]["mean"] == 64 and row["n"] == 6
    assert len(server.asked) == 6
    body = server.asked[0]
    assert body["mm_processor_kwargs"] == {"visiondrop": {"method": "visionzip", "options": {}, "tokens": 64}}
    assert body["temperature"] == 0 and body["add_special_tokens"] and body["model"] == "served"
    picture, text = body["messages"][0]["content"]
    held = base64.b64decode(picture["image_url"]["url"].split(",")[1])
    assert Image.open(io.BytesIO(held)).size == (336, 336) and text["text"].endswith("?")
    assert ask(server, tmp_path, *told) == 0 and len(server.asked) == 6  # done already
    assert ask(server, tmp_path, *told, "--force") == 0 and len(server.asked) == 12


def test_a_refusal_is_told_with_the_servers_sentence(server, tmp_path, capsys):
    server.sentence = "Processor kwargs are not allowed"
    assert ask(server, tmp_path, "--method", "none") == 2
    assert "refuses (400): Processor kwargs are not allowed" in capsys.readouterr().err
    server.shutdown()
    server.server_close()
    assert ask(server, tmp_path, "--method", "none", "--tokens", "576") == 2
    assert "start one with visiondrop serve" in capsys.readouterr().err
