"""lmms-eval tasks over the drawn question sets; data from `python -m testbed.data.sets --out DIR`, runs inside DIR."""
