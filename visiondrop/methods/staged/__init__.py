"""Methods that act both after the encoder and inside the language model."""
