"""From a mixture of voices to a set of speaker embeddings, and a memory that follows people by them."""
