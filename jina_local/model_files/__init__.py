"""A file or folder -> the files of one model, checked. It asks no network, no engine and no cache."""
