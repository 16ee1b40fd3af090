"""Speech from outside: manifests, data sets, RTTM and audio files in, Utterances out."""
