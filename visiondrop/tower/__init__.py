"""The encoder stage, once, for every front end."""
