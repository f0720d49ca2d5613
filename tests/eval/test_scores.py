"""Counts of single answers equal lmms-eval's own aggregations, and the intervals mean what they say."""

import random

import numpy as np
import pytest
from lmms_eval.tasks.mmbench import en_utils
from lmms_eval.tasks.mme import utils as mme
from lmms_eval.tasks.pope import utils as pope

from eval import benchmarks
from eval.errors import EvaluationError
from eval.scoring import scores
from eval.tasks import pope as pope_llava


def sample(doc_id: int, doc: dict, results: dict) -> dict:
    return {"doc_id": doc_id, "doc": doc, **results}


def values(samples: list[dict], metric: str) -> list:
    return [s[metric] for s in samples if metric in s]


def test_mean_of_an_accuracy():
    gqa = benchmarks.get("gqa", "offline")
    samples = [sample(i, {"imageId": str(i // 3)}, {"exact_match": float(i % 4 == 0)}) for i in range(40)]
    assert scores.recount(scores.terms(gqa, samples)) == pytest.approx(25.0)


def pope_samples(process) -> list[dict]:
    draw = random.Random(0)
    out = []
    for i in range(300):
        doc = {"question_id": str(i), "answer": draw.choice(["yes", "no"]), "category": pope_llava.CATEGORIES[i % 3]}
        doc["image_source"] = str(i // 6)
        said = draw.choice(["Yes", "no", "Yes.", "No, there is not", "maybe", "yes"])
        out.append(sample(i, doc, process(doc, [said])))
    return out


def test_pope_equals_lmms_eval():
    samples = pope_samples(pope.pope_process_results)
    counted = scores.recount(scores.terms(benchmarks.get("pope", "offline"), samples))
    assert counted == pytest.approx(100 * pope.pope_aggregate_f1_score(values(samples, "pope_f1_score")))


def test_pope_of_the_paper_is_the_mean_of_three_f1():
    samples = pope_samples(pope_llava.process_results)
    counted = scores.recount(scores.terms(benchmarks.get("pope", "paper"), samples))
    records = values(samples, "pope_f1_mean")
    each = [pope_llava.f1_random(records), pope_llava.f1_popular(records), pope_llava.f1_adversarial(records)]
    assert counted == pytest.approx(100 * sum(each) / 3) == pytest.approx(100 * pope_llava.f1_mean(records))
    assert len(set(each)) == 3


@pytest.mark.parametrize(
    ("said", "read"),
    [
        ("Yes", "yes"),
        ("No", "no"),
        ("No, it is not.", "no"),
        ("Yes. No doubt", "yes"),
        ("There is not", "no"),
        ("nothing", "yes"),
        ("NO", "yes"),
    ],
)
def test_llava_reads_the_first_sentence(said, read):
    assert pope_llava.read_answer(said) == read


def test_f1_by_hand():
    records = [
        {"prediction": p, "ground_truth": t} for p, t in [("yes", "yes"), ("yes", "no"), ("no", "yes"), ("yes", "yes")]
    ]
    assert pope_llava.f1(records) == pytest.approx(2 / 3)  # precision 2/3, recall 2/3
    assert pope_llava.f1([{"prediction": "no", "ground_truth": "no"}]) == 0


def test_mme_equals_lmms_eval():
    draw = random.Random(1)
    samples = []
    for i in range(200):
        category = ("existence", "color", "OCR", "code_reasoning", "text_translation")[i // 2 % 5]
        doc = {"question_id": f"{category}/{i // 2}", "answer": "Yes" if i % 2 else "No", "category": category}
        samples.append(sample(i, doc, mme.mme_process_results(doc, [draw.choice(["Yes", "No", "hm"])])))
    benchmark = benchmarks.get("mme", "offline")
    both = [mme.mme_aggregate_results(values(samples, metric)) for metric in benchmark.headline]
    counted = scores.recount(scores.terms(benchmark, samples))
    assert min(both) > 0 and counted == pytest.approx(sum(both))
    assert set(scores.MME_COGNITION) == set(mme.eval_type_dict["Cognition"])


def test_mmbench_equals_lmms_eval():
    draw = random.Random(2)
    samples = []
    for i in range(60):
        index = i // 2 + (i % 2) * scores.MMBENCH_TURN
        doc = {
            "index": index,
            "question": "q",
            "answer": draw.choice("AB"),
            "hint": "nan",
            "source": "s",
            "split": "dev",
        }
        doc |= {"category": "c", "L2-category": "l", "A": "cat", "B": "dog", "C": "nan", "D": "nan"}
        said = draw.choice(["A", "B.", "(A)", "a dog", doc["answer"], doc["answer"], "none of these"])
        samples.append(sample(i, doc, en_utils.mmbench_process_results(doc, [said])))
    records = values(samples, "gpt_eval_score")
    theirs = 100 * en_utils.mmbench_evaluator.eval_result([dict(r) for r in records], eval_method="static")[0]
    assert 0 < theirs < 100
    assert scores.recount(scores.terms(benchmarks.get("mmbench", "offline"), samples)) == pytest.approx(theirs)


def test_a_wrong_score_is_noticed():
    gqa = benchmarks.get("gqa", "offline")
    parts = scores.terms(gqa, [sample(i, {"imageId": "0"}, {"exact_match": 1.0}) for i in range(4)])
    scores.check_recount(gqa, parts, 100.0)
    with pytest.raises(EvaluationError, match="differs from the count"):
        scores.check_recount(gqa, parts, 99.0)


def test_headline_sums_and_names_what_is_missing():
    benchmark = benchmarks.get("mme", "offline")
    assert scores.headline(benchmark, {"mme_perception_score": 5.0, "mme_cognition_score": 2.0}) == (7.0, [])
    assert scores.headline(benchmark, {"mme_perception_score": 5.0}) == (5.0, ["mme_cognition_score"])
    assert scores.headline(benchmarks.get("vqav2", "paper"), {}) == (None, [])
    with pytest.raises(EvaluationError, match="no mme_perception_score or mme_cognition_score"):
        scores.headline(benchmark, {"other": 1.0})


def accuracy(rights: list[float], images: list[int]) -> scores.Terms:
    return {"accuracy": (100.0, [(image, right, 1.0) for right, image in zip(rights, images)])}


def test_bootstrap_of_independent_answers_is_the_normal_interval():
    rights = [1.0] * 300 + [0.0] * 100
    (low, high), method = scores.interval(accuracy(rights, list(range(400))))
    half = 1.96 * 100 * (0.75 * 0.25 / 400) ** 0.5
    assert low == pytest.approx(75 - half, abs=0.5) and high == pytest.approx(75 + half, abs=0.5)
    assert method.startswith("bootstrap of 400 clusters")


def test_questions_on_one_image_are_drawn_together():
    rights = [float(i // 10 % 4 > 0) for i in range(400)]  # all ten questions of an image agree
    narrow = scores.interval(accuracy(rights, list(range(400))))[0]
    wide = scores.interval(accuracy(rights, [i // 10 for i in range(400)]))[0]
    ratio = (wide[1] - wide[0]) / (narrow[1] - narrow[0])
    assert ratio == pytest.approx(10**0.5, rel=0.15)


def test_interval_covers_the_truth_about_as_often_as_it_says(monkeypatch):
    monkeypatch.setattr(scores, "RESAMPLES", 300)
    generator = np.random.default_rng(3)
    hits = 0
    for _ in range(200):
        low, high = scores.interval(accuracy(list((generator.random(150) < 0.7).astype(float)), list(range(150))))[0]
        hits += low <= 70 <= high
    assert 180 <= hits <= 199


def test_all_right_gives_wilson_and_one_image_gives_none():
    (low, high), method = scores.interval(accuracy([1.0] * 10, list(range(10))))
    assert (low, high) == (pytest.approx(72.25, abs=0.01), 100.0) and method == "Wilson over 10 clusters"
    assert scores.interval(accuracy([1.0] * 10, [0] * 10)) == (None, "none: a single cluster")
    assert scores.interval(accuracy([0.5] * 10, list(range(10)))) == (None, "none: all clusters agree")
