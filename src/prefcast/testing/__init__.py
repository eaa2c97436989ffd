"""For authors of scorers: the tests of the scorer contract."""
