"""A store looked after: verify, repair, compact."""
