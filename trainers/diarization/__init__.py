"""Who spoke when: small heads on frames, trained on crops, decoded and scored window by window."""
