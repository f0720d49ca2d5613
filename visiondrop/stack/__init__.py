"""One pass through a decoder whose layers hold different numbers of tokens."""
