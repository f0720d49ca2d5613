"""The testbed: a small LVLM of the LLaVA-1.5 architecture and the drawn question sets it is trained and tested on.

It is a stand-in that lets every method run offline; nothing measured on it is a reproduction of a 7B result.
"""
