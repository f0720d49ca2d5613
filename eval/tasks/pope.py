"""POPE as LLaVA-1.5's eval_pope.py scores it, for the task pope_llava.

The paper prints one POPE number and does not say which statistic it is; LLaVA's script prints accuracy, precision,
recall and F1 for each category, and papers usually report the mean of the three F1.
"""

CATEGORIES = ("random", "popular", "adversarial")
METRICS = ("pope_f1_mean", "pope_accuracy_mean", *(f"pope_f1_{c}" for c in CATEGORIES))


def read_answer(text: str) -> str:
    """ "yes" or "no" by LLaVA's rule: in the first sentence, the word No, no or not means no; all else is yes."""
    words = text.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def process_results(doc: dict, results: list[str]) -> dict[str, dict]:
    """One record per question, the same for every metric: category, what was read, what is true."""
    truth = doc["answer"].strip().lower()
    record = {"category": doc["category"], "prediction": read_answer(results[0]), "ground_truth": truth}
    record["score"] = float(record["prediction"] == truth)
    return dict.fromkeys(METRICS, record)


def f1(records: list[dict]) -> float:
    """F1 of "yes" over the records; 0 without a true or read yes."""
    yes_read = sum(r["prediction"] == "yes" for r in records)
    yes_true = sum(r["ground_truth"] == "yes" for r in records)
    hits = sum(r["prediction"] == r["ground_truth"] == "yes" for r in records)
    return 2 * hits / (yes_read + yes_true) if yes_read + yes_true else 0.0


def accuracy(records: list[dict]) -> float:
    """Share of right answers."""
    return sum(r["score"] for r in records) / len(records)


def _by_category(records: list[dict]) -> list[list[dict]]:
    groups = [[r for r in records if r["category"] == c] for c in CATEGORIES]
    return [g for g in groups if g]


def f1_mean(records: list[dict]) -> float:
    """Plain mean of the F1 of the categories that are present."""
    scores = [f1(g) for g in _by_category(records)]
    return sum(scores) / len(scores)


def accuracy_mean(records: list[dict]) -> float:
    """Plain mean of the accuracy of the categories that are present."""
    scores = [accuracy(g) for g in _by_category(records)]
    return sum(scores) / len(scores)


def f1_random(records: list[dict]) -> float:
    """F1 of the category "random"."""
    return f1([r for r in records if r["category"] == "random"])


def f1_popular(records: list[dict]) -> float:
    """F1 of the category "popular"."""
    return f1([r for r in records if r["category"] == "popular"])


def f1_adversarial(records: list[dict]) -> float:
    """F1 of the category "adversarial"."""
    return f1([r for r in records if r["category"] == "adversarial"])
