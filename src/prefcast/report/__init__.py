"""Results as text, plots and HTML."""
