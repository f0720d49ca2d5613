"""Drawn scenes, questions about them, question sets and their tokenizer."""
