"""lmms-eval tasks of ours: twins of shipped ones for another split or prompt, and the functions their yaml files name."""
