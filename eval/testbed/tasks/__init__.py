"""lmms-eval tasks over the drawn question sets; data from `python -m eval.testbed.sets --out DIR`, runs inside DIR."""
