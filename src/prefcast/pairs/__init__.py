"""Pairs of conversations: what they are, where they come from, and how much of them is read."""

from prefcast.pairs.pair import Outcome, Pair, Turn, clean, group_key

__all__ = ["Outcome", "Pair", "Turn", "clean", "group_key"]
