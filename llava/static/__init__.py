"""Greedy answers with static shapes: CUDA graphs, torch.compile."""
