"""One file per method: a plan, and the arithmetic of its selectors on tensors."""
