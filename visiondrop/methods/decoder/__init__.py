"""Methods that act inside the language model only."""
