"""From evidence to probabilities, and the statistics of many rows."""
