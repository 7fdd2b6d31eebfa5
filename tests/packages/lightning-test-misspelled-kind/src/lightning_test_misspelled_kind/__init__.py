"""Announces a component of a kind that does not exist, and one with a bad name."""
