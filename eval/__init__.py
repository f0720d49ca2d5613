"""Evaluation: benchmarks through lmms-eval, answers kept as they come, results as rows with their provenance.

python -m eval.run gqa --tokens 64 --model liuhaotian/llava-v1.5-7b
"""
