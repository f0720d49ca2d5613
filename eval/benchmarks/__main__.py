"""Prints the table of benchmarks.

python -m eval.benchmarks
"""

from eval.benchmarks import load

for protocols in load().values():
    for b in protocols.values():
        goal = " + ".join(b.headline) or f"upload to {b.server}"
        print(f"{b.name:<12}{b.protocol:<9}{b.task:<24}{b.split:<12}{b.rows or '?':>7}  {goal}")
