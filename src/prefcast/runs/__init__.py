"""Long runs. Evidence is kept as soon as it is computed, and the same command continues a run that was stopped.

The rows of a piece depend on their position in the input alone (`pairs.pieces`). So the output is the same to the last byte,
whatever process scores a piece, in whatever order, and after any number of interruptions.
"""
