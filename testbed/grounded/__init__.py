"""The testbed's sibling that says where things are: the base pictures, one more kind of question, answered by a box.

A stand-in like the testbed itself; nothing measured on it is a reproduction of a 7B result.
"""
