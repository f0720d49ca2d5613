"""Answers as they come: what a kill, a full disk, damage and a second process leave behind."""

import errno
import json
import os
import threading

import pytest

from eval.errors import EvaluationError
from eval.results.answers import AnswerStore, question_key


def entries(first: int, last: int) -> list[tuple[str, int, str]]:
    return [(question_key(i, f"question {i}", {}), i, f"answer {i} ü\n") for i in range(first, last)]


def stored(folder) -> list[int]:
    return sorted(
        json.loads(line)["doc_id"] for f in folder.glob("answers-*.jsonl") for line in f.read_text().splitlines()
    )


def test_key_depends_on_document_prompt_and_settings():
    keys = {
        question_key(0, "a", {"max_new_tokens": 16}),
        question_key(1, "a", {"max_new_tokens": 16}),
        question_key(0, "b", {"max_new_tokens": 16}),
        question_key(0, "a", {"max_new_tokens": 17}),
    }
    assert len(keys) == 4
    assert question_key(0, "a", {"x": 1, "y": 2}) == question_key(0, "a", {"y": 2, "x": 1})


def test_answers_survive_and_are_not_doubled(tmp_path):
    store = AnswerStore(tmp_path)
    store.add(entries(0, 3))
    store.add(entries(2, 5))
    store.close()
    again = AnswerStore(tmp_path)
    assert len(again) == 5 and again.dropped == 0
    assert [again.get(key) for key, _, _ in entries(0, 5)] == [text for _, _, text in entries(0, 5)]
    assert again.get(question_key(9, "question 9", {})) is None
    assert stored(tmp_path) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("cut", [1, 10, 60])
def test_torn_last_line_is_dropped_and_only_it(tmp_path, cut):
    store = AnswerStore(tmp_path)
    store.add(entries(0, 4))
    store.close()
    os.truncate(store.path, store.path.stat().st_size - cut)
    again = AnswerStore(tmp_path)
    assert len(again) == 3 and again.dropped == 1
    again.add(entries(0, 4))
    again.close()
    assert stored(tmp_path) == [0, 1, 2, 3]


def test_damaged_line_is_asked_again(tmp_path):
    store = AnswerStore(tmp_path)
    store.add(entries(0, 3))
    store.close()
    store.path.write_text(store.path.read_text().replace("answer 1", "answer 7"))
    again = AnswerStore(tmp_path)
    assert again.dropped == 1 and again.get(entries(1, 2)[0][0]) is None and again.get(entries(2, 3)[0][0])


def test_a_process_reads_the_answers_of_all(tmp_path):
    first, second = AnswerStore(tmp_path, 0), AnswerStore(tmp_path, 1)
    first.add(entries(0, 2))
    second.add(entries(2, 4))
    first.close(), second.close()
    assert len(AnswerStore(tmp_path, 0)) == 4


def test_a_file_has_one_writer(tmp_path):
    store = AnswerStore(tmp_path)
    with pytest.raises(EvaluationError, match="another process"):
        AnswerStore(tmp_path, patience=0.2)
    threading.Timer(0.3, store.close).start()
    AnswerStore(tmp_path, patience=10).close()


def fill_disk(monkeypatch, after: int) -> None:
    """Let every write fail after `after` bytes, as a full disk does: short first, then with ENOSPC."""
    real, left = os.write, [after]

    def write(descriptor, data):
        if left[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        done = real(descriptor, bytes(data[: left[0]]))
        left[0] -= done
        return done

    monkeypatch.setattr(os, "write", write)


def test_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    store = AnswerStore(tmp_path)
    store.add(entries(0, 2))
    with monkeypatch.context() as patch:
        fill_disk(patch, after=30)
        with pytest.raises(EvaluationError, match="disk is full; the 2 answers stored so far are safe"):
            store.add(entries(2, 4))
    assert store.get(entries(2, 3)[0][0]) is None
    store.add(entries(2, 4))
    store.close()
    again = AnswerStore(tmp_path)
    assert len(again) == 4 and again.dropped == 0


def test_unwritable_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match="choose another --runs"):
        AnswerStore(tmp_path / "file" / "run")
