"""Controls: what pruning costs when nothing is chosen for its content."""
