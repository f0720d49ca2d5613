"""Models as lmms-eval takes them, and what the runs of one process share."""
