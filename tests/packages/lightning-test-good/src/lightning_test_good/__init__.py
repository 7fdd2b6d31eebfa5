"""A tracer with settings, a store with a URL and a hook, all of which work."""
