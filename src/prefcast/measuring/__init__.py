"""Measuring forecasts against labels, comparing systems, and ranking models."""
