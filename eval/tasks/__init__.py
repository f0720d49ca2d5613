"""lmms-eval tasks of ours: twins of shipped ones for another split or prompt, and functions their files name."""
