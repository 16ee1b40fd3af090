"""A store at a distance: in a bucket or behind a web server."""
