"""Scorers: each reduces a pair to evidence. `base` is their contract, `registry` finds them by name, `store` and `kept` keep
what they computed. Importing this package loads nothing."""
