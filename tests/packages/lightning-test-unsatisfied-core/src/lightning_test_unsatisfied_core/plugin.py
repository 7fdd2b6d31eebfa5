"""Must not be imported: the requirement on the core, which is not satisfied, is checked first."""

raise AssertionError("imported although the core does not satisfy its requirement")
