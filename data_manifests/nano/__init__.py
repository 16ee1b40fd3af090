"""Training code of the two small demo networks, mimi-nano and titanet-nano. See MODEL_CARD.md."""
