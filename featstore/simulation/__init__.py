"""Sessions of several speakers made of single-speaker utterances."""
