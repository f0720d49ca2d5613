"""The testbed's sibling for videos: eight drawn frames with [CLS] in Video-LLaVA's layout, fine-tuned from the testbed.

A stand-in like the testbed itself; nothing measured on it is a reproduction of a 7B result.
"""
