"""Reward functions for the trainers of language models: TRL, verl and OpenRLHF. `from prefcast import rewards`.

A reward is the probability that people prefer an answer to the others of its group (reading "preferred"), or the raw score of a
reward model (reading "score"). What comes from a trainer is read in samples.py, scored in scoring.py, and watched and corrected for
length in monitor.py; core.py joins them, and functions.py has the form of each trainer.
"""

from __future__ import annotations

from prefcast.service.rewards.core import Settings
from prefcast.service.rewards.functions import RewardFunction, length_slope, openrlhf, trl, verl
from prefcast.service.rewards.lengths import Slope
from prefcast.service.rewards.monitor import Monitor

__all__ = ["Monitor", "RewardFunction", "Settings", "Slope", "length_slope", "openrlhf", "trl", "verl"]
