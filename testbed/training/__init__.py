"""The small model: courses of training, losses, batches, export."""
