"""How good forecasts are, and what they say of systems."""
