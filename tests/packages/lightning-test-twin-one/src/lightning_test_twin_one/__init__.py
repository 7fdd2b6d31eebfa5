"""Claims a name that another distribution claims too."""
