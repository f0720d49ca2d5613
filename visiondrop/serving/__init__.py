"""Pruned image tokens inside vLLM, as a plug-in: `pip install visiondrop[serve]`, then `visiondrop serve MODEL --tokens 64`.

`settings`, `images`, `entry` and `tower` know nothing of vLLM; `processor` and `models` are what vLLM calls, `plugin` is its
entry point, `command` the command line.
"""
