"""Who spoke when by two parts: a head that counts voices says when, clusters of another feature's frames say who."""
