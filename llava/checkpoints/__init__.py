"""Reading checkpoints in their published layouts: configuration, weights, tokenizer."""
