"""From pairs to probabilities: forecasters, forecasts and their files."""
