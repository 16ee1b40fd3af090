"""Live diarization for others: a server with a page, and a tap beside a running Moshi.

Nothing here knows how turns are found (`diarizer.live` does); it brings sound there and updates away.
"""
