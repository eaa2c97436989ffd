"""Statistics over many rows: tables, bootstrap, likelihood. These modules do not use pairs."""
