"""Target speech extraction: one voice out of a mixture, given what it sounds like."""
