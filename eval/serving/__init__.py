"""How fast a served model is, and how many GPUs a load needs: `python -m eval.serving` (see `__main__.py`)."""
