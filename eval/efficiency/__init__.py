"""How fast pruning is: `python -m eval.efficiency` (see `__main__.py`); random weights suffice."""
