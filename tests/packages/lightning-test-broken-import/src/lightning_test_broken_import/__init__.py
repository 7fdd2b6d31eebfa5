"""A tracer whose module imports a package that is not installed."""
