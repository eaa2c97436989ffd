"""Numbers about many rows: tables, bootstrap, likelihood. Nothing here knows of pairs."""
