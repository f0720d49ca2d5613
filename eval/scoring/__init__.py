"""From answers to scores: headline metrics with intervals, and judges."""
