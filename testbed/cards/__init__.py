"""Measures of a trained model, and the model card made from them."""
