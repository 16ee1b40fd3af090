"""The extraction: a manifest and an encoder in, a filled store out."""
