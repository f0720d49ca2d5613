"""The load tool against a small streaming server: counts, order, rows, going on, refusals; FLOPs against a longhand sum."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from eval.errors import EvaluationError
from eval.serving import __main__ as tool
from eval.serving import client, load, wide
from visiondrop.plans import flops

TEXT, TOKEN = 40, 0.004  # text tokens of a prompt; seconds of the server for a token of the answer
PICTURE = 1e-4  # seconds of the server for a picture's token
PAGE = """# HELP vllm:kv_cache_usage_perc used
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prefix_cache_hits_total{engine="0"} 7.0
vllm:cache_config_info{block_size="128",num_gpu_blocks="10"} 1.0
other_metric 3
"""


class Handler(BaseHTTPRequestHandler):
    """Answers with as many tokens as it is asked for, later where more visual tokens are asked for, one at a time."""

    def do_GET(self):
        pages = {"/version": '{"version": "0.32.0"}', "/metrics": PAGE}
        self.reply(pages.get(self.path, json.dumps({"data": [{"id": self.server.model}]})).encode())

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        setting = body["mm_processor_kwargs"]["visiondrop"]
        with self.server.lock:
            self.server.asked.append(body)
            self.server.inside += 1
            self.server.most = max(self.server.most, self.server.inside)
        visual = setting.get("tokens", 576)
        self.send_response(200)
        self.end_headers()
        with self.server.engine:
            time.sleep(visual * PICTURE)
        for number in range(body["max_tokens"] - self.server.short):
            time.sleep(TOKEN)
            self.line({"choices": [{"token_ids": [number], "delta": {"content": ""}}]})
        with self.server.lock:
            self.server.inside -= 1
        self.line({"choices": [], "usage": {"prompt_tokens": TEXT + visual}})
        self.wfile.write(b"data: [DONE]\n\n")

    def line(self, found):
        self.wfile.write(b"data: " + json.dumps(found).encode() + b"\n\n")
        self.wfile.flush()

    def reply(self, data):
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        """Quiet."""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return wide.write("thin", tmp_path_factory.mktemp("hub") / "thin")


@pytest.fixture
def server(model):
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.model, httpd.asked, httpd.inside, httpd.most, httpd.short = str(model), [], 0, 0, 0
    httpd.lock, httpd.engine = threading.Lock(), threading.Lock()
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()


def ask(server, out, *more) -> int:
    url = f"http://127.0.0.1:{server.server_port}"
    told = ["load", "--server", url, "--concurrency", "1,3", "--requests", "2,6", "--rounds", "2", "--new-tokens", "3"]
    return tool.main([*told, "--out", str(out), *more])


def test_rows_of_all_sides_and_a_second_call_that_asks_nothing(server, tmp_path, capsys):
    out = tmp_path / "rows.jsonl"
    assert ask(server, out) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 * 2 * 3 and server.most == 3 and {row["cpu_s_per_request"] for row in rows} == {None}
    assert len(server.asked) == 3 + 2 * 3 * (2 + 6)
    pictures = [b["messages"][0]["content"][0]["image_url"]["url"] for b in server.asked[3:]]
    assert {pictures.count(p) for p in pictures} == {3}  # once a side, in no other round
    for row in rows:
        assert row["served"] == "vllm 0.32.0" and row["text_tokens"] == TEXT and row["kv_peak"] in (0, 0.25)
        assert row["kv_tokens"] == 1280 and row["prefix_cache_hits"] == 0 and row["commit"]
        assert row["tokens_per_s"] == pytest.approx(3 * row["requests_per_s"])
        assert row["ttft_ms"]["p50"] >= 1e3 * TOKEN
        # A client that is late itself reads two tokens at once: the gaps have no lower bound of their own.
        assert 0 < row["inter_token_ms"]["p50"] <= row["inter_token_ms"]["p95"]
        assert (row["compared"] is None) == (row["method"] == "none")
        if row["method"] == "visionzip" and row["concurrency"] == 3:
            assert row["compared"]["ratio"] > 1 and row["ledger"]["tokens"] == 64
            assert row["compared"]["realised"] == pytest.approx(
                row["compared"]["ratio"] / row["compared"]["flop_ratio"]
            )
    shown = capsys.readouterr().out
    assert shown.count("visionzip 64") == 2 and "realised" in shown
    count = len(server.asked)
    assert ask(server, out) == 0 and len(server.asked) == count + 3  # the three that warm it up
    assert len(out.read_text().splitlines()) == len(rows)


def test_a_call_that_was_broken_off_goes_on_with_whole_rounds(server, tmp_path):
    out = tmp_path / "rows.jsonl"
    assert ask(server, out) == 0
    lines = out.read_text().splitlines()
    out.write_text("\n".join(lines[:7]) + "\n")  # two whole rounds and one side of the third
    count = len(server.asked)
    assert ask(server, out) == 0
    assert len(server.asked) == count + 3 + 2 * 3 * 6


def test_what_cannot_be_compared_is_refused(server, tmp_path, capsys):
    server.short = 1
    assert ask(server, tmp_path / "rows.jsonl") == 2
    assert "ignore_eos" in capsys.readouterr().err and (tmp_path / "rows.jsonl").read_text() == ""
    assert ask(server, tmp_path / "rows.jsonl", "--methods", "none,fastv", "--tokens", "200") == 2
    assert "inside the decoder" in capsys.readouterr().err
    assert ask(server, tmp_path / "rows.jsonl", "--requests", "2") == 2
    assert "one number for each" in capsys.readouterr().err


def test_sides_take_turns():
    cases = [load.Case(m) for m in "abc"]
    for place in range(3):  # every side is at every place equally often
        assert sorted(load.order(cases, turn)[place].method for turn in range(6)) == list("aabbcc")


def test_ratios_of_a_round_by_hand():
    def side(method, tokens, speed, flops):
        return {
            "method": method,
            "tokens": tokens,
            "requests_per_s": speed,
            "flops": flops,
            "ttft_ms": {"p50": 1 / speed},
            "cpu_s_per_request": 0.5 / speed,
        }

    rows = [side("none", None, 2.0, 90.0), side("visionzip", 64, 6.0, 20.0), side("uniform", 64, 5.0, 30.0)]
    load.compared(rows)
    assert rows[0]["compared"] is None and rows[0]["choosing"] is None
    assert rows[1]["compared"] == {
        "ratio": 3.0,
        "flop_ratio": 4.5,
        "realised": 3 / 4.5,
        "ttft_ratio": 3.0,
        "cpu_ratio": 3.0,
    }
    # uniform takes 0.2 s for 30: at its pace 20 take 0.133 s, and visionzip takes 0.167 s.
    assert rows[1]["choosing"] == pytest.approx((1 / 6 - 0.2 * 20 / 30) / (1 / 6))


def test_flops_of_a_request_are_its_prefill_and_its_steps(model):
    images = load.Images(load.configuration(str(model)))
    plan, dims = (
        images.plan(images.served.asked({"method": "visionzip", "tokens": 64}), images.shape),
        images.adapter.dims(),
    )
    d, m, v, layers = 64, 128, dims.vocab, 4
    past = 64 + 10
    step = [layers * (2 * (4 * d * d + 3 * d * m) + 4 * d * (1 + past + i)) + 2 * d * v for i in range(2)]
    found = load.request_flops(plan, dims, 10, 3)
    assert found == pytest.approx(flops.prefill(plan, dims, 10, lean=True) + sum(step))


def test_processor_time_of_a_process_and_its_children():
    before = client.cpu_seconds(os.getpid())
    burn = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        assert client.cpu_seconds(os.getpid()) - before >= 0.45  # it counts in hundredths
        child.communicate(b"\n")
    with pytest.raises(EvaluationError, match="--process"):
        client.cpu_seconds(child.pid)


def test_metrics_are_summed_over_labels():
    found = client.metrics(PAGE.replace("7.0", '7.0\nvllm:prefix_cache_hits_total{engine="1"} 1e+01'))
    assert found["vllm:prefix_cache_hits_total"] == 17 and found["kv_tokens"] == 1280 and "other_metric" not in found


def test_the_wide_model_is_read_by_transformers(model):
    config = json.loads((model / "config.json").read_text())
    assert config["text_config"]["hidden_size"] == 64 and config["vision_config"]["hidden_size"] == 32
    with ThreadPoolExecutor(1) as pool:  # a thread of its own: nothing is left to the reader's state
        loaded = pool.submit(_load, model).result()
    assert loaded.language_model.layers[3].mlp.down_proj.weight.shape == (64, 128)


def _load(folder):
    from transformers import AutoModel

    model, told = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not told["missing_keys"] and not told["mismatched_keys"]
    return model
