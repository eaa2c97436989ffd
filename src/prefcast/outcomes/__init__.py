"""Outcome models, which turn evidence into probabilities, and statistics over many rows."""
