"""Claims a name that is built into the core."""
