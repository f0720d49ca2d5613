"""Benchmarks by name, and their data.

from eval import benchmarks
benchmark = benchmarks.get("gqa", "offline")
"""

from eval.benchmarks.table import PROTOCOLS, TABLE, Benchmark, DataSource, get, groups, load

__all__ = ["PROTOCOLS", "TABLE", "Benchmark", "DataSource", "get", "groups", "load"]
