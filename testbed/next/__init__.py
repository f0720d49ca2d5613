"""The testbed's NeXT-style sibling: 672 px scenes with small objects, base view and four crops, 2,880 visual tokens.

scenes.py draws, sets.py writes the question sets, views.py cuts pictures as LLaVA-NeXT does, course.py trains.
"""
