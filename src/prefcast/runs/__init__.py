"""A long run: what is scored is kept at once, and the same command goes on where it was stopped.

Pieces are formed by position in the input alone (`pairs.pieces`), so that whoever scores them, in whatever order and after
however many interruptions, the output is the same to the last byte.
"""
