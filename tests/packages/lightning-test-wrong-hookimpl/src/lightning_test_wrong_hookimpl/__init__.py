"""A tracer whose hook takes an argument, and one whose hook is misspelled."""
