"""One image, many questions: prefixes, their store, and sessions."""
