"""A real server of the exported testbed on loopback: answers, settings, caches, chunks, several processes, restarts, memory.

Needs the serving environment: bash scripts/test_serving.sh
"""

import json
import os
import urllib.request
from itertools import cycle, islice

import pytest

pytest.importorskip("vllm", reason="the serving environment: bash scripts/serve/setup.sh")

import psutil

from llava.export_hub import export
from tests.support.served import SOURCE, Server, all_answers, message, own_answers, samples, serving

QUESTIONS = int(os.environ.get("SERVED_QUESTIONS", "12"))
SETTINGS = [
    {"method": "none"},
    {"method": "visionzip", "tokens": 64},
    {"method": "visionzip", "tokens": 32},
    {"method": "vispruner", "tokens": 64, "options": {"bits": 4}},
    {"method": "visiondrop-encoder", "tokens": 64},
    {"method": "divprune", "tokens": 64},
    {"method": "random", "tokens": 64},
    {"method": "pool", "tokens": 64},
]
DEFAULT = ("--method", "visionzip", "--tokens", "64", "--trust-request-mm-kwargs")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return export(str(SOURCE), tmp_path_factory.mktemp("hub") / "testbed")


@pytest.fixture(scope="module")
def rows():
    return samples(QUESTIONS)


@pytest.fixture(scope="module")
def expected(rows):
    """Our package's answers, by setting."""
    return {json.dumps(one): own_answers(one, rows) for one in SETTINGS}


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with serving(folder, tmp_path_factory.mktemp("log") / "server.log", *DEFAULT, "--most-tokens", "576") as running:
        yield running


def compare(server: Server, rows, expected, settings=SETTINGS) -> None:
    """All questions under all settings, settings mixed, by four clients at once."""
    asked = [(row, one, expected[json.dumps(one)][i]) for i, row in enumerate(rows) for one in settings]
    found = all_answers(server, [row for row, _, _ in asked], [one for _, one, _ in asked])
    wrong = [(one, row["question"], own, got) for (row, one, own), got in zip(asked, found, strict=True) if own != got]
    assert wrong == []


def test_answers_are_our_packages_and_settings_mix(server, rows, expected):
    compare(server, rows, expected)
    # Again, now from the caches: encoder and prefix caches hold every picture under every setting.
    compare(server, rows[:6], {name: answers[:6] for name, answers in expected.items()})


def test_the_servers_own_setting_holds_where_a_request_says_nothing(server, rows, expected):
    answers = all_answers(server, rows, [None] * len(rows))
    assert answers == expected[json.dumps(SETTINGS[1])]


def test_prompts_are_as_long_as_the_plans_say(server, rows):
    length = {}
    for tokens in (576, 64, 32):
        one = {"method": "none"} if tokens == 576 else {"method": "visionzip", "tokens": tokens}
        status, found = server.ask(rows[0]["picture"], rows[0]["question"], one)
        assert status == 200
        length[tokens] = found["usage"]["prompt_tokens"]
    assert length[576] - length[64] == 512 and length[64] - length[32] == 32


@pytest.mark.parametrize(
    "asked, sentence",
    [
        ({"method": "visonzip"}, "did you mean 'visionzip'"),
        ({"method": "fastv", "tokens": 64}, "inside the decoder"),
        ({"method": "visiondrop", "tokens": 64}, "a method must end before decoder layer 1"),
        ({"method": "cdpruner", "tokens": 64}, "reads the question"),
        ({"tokens": 577}, "must lie in 1 … 576"),
        ({"token": 64}, "did you mean 'tokens'"),
        ({"method": "vispruner", "options": {"bits": 99}}, "bits=99"),
        ("visionzip", "give a mapping"),
    ],
)
def test_wrong_settings_are_400_with_the_sentence(server, rows, asked, sentence):
    status, found = server.ask(rows[0]["picture"], rows[0]["question"], asked)
    assert status == 400 and sentence in json.dumps(found, ensure_ascii=False), found
    assert server.answer(rows[0]["picture"], rows[0]["question"])  # and the server goes on


def test_two_pictures_of_one_prompt(server, rows):
    """Placeholders and rows of several images: the answer does not depend on who else is asked at the same time."""
    picture, other = rows[0]["picture"], rows[-1]["picture"]
    turn = message(picture, rows[0]["question"])
    turn["content"].insert(1, message(other, "")["content"][0])
    body = {"messages": [turn], "temperature": 0, "max_tokens": 6, "add_special_tokens": True}
    alone = server.post(body)
    assert alone[0] == 200 and alone[1]["usage"]["prompt_tokens"] > 128
    assert server.post(body)[1]["choices"][0]["message"] == alone[1]["choices"][0]["message"]


def memory_of(process: int) -> int:
    """Bytes held by a process and its children."""
    found = psutil.Process(process)
    return sum(p.memory_info().rss for p in (found, *found.children(recursive=True)))


def test_memory_does_not_grow(server, rows):
    """Once vLLM's caches hold the pictures: new ones fill its processor cache, up to --mm-processor-cache-gb."""
    count = int(os.environ.get("SERVED_REQUESTS", "200"))
    many = list(islice(cycle(rows), count))
    asked = list(islice(cycle(SETTINGS[1:]), count))
    for _ in range(2):
        all_answers(server, many, asked)
    before = memory_of(server.process.pid)
    all_answers(server, many, asked)
    assert memory_of(server.process.pid) - before <= 16 * 2**20


@pytest.mark.parametrize(
    "flags",
    [
        ("--no-enable-prefix-caching", "--max-num-batched-tokens", "640", "--max-num-seqs", "4"),
        ("--tensor-parallel-size", "2"),
    ],
    ids=["chunks-without-prefix-cache", "two-processes"],
)
def test_other_ways_to_run_answer_alike(folder, rows, expected, tmp_path, flags):
    with serving(folder, tmp_path / "server.log", *DEFAULT, *flags) as other:
        compare(other, rows, expected)


def test_a_restart_in_the_middle(folder, rows, expected, tmp_path):
    """The second server on the same port answers the rest; without --trust-request-mm-kwargs no request may choose."""
    one, half = SETTINGS[1], len(rows) // 2
    flags = ("--method", "visionzip", "--tokens", "64")
    with serving(folder, tmp_path / "first.log", *flags) as first:
        begun = all_answers(first, rows[:half], [None] * half)
        status, _ = first.ask(rows[0]["picture"], rows[0]["question"], {"tokens": 32})
        assert status == 400
        port = int(first.url.rsplit(":", 1)[1])
    second = Server(folder, tmp_path / "second.log", flags, port)
    try:
        rest = all_answers(second.wait(), rows[half:], [None] * (len(rows) - half))
        with urllib.request.urlopen(f"{second.url}/v1/models") as found:
            assert json.load(found)["data"][0]["id"] == str(folder)
    finally:
        second.stop()
    assert begun + rest == expected[json.dumps(one)]
