"""Numbers only: what a method will do to an image of known shape, before any model is loaded."""
