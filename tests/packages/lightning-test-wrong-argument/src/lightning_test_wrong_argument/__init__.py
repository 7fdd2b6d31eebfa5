"""A hook with a misspelled keyword, which no event passes."""
