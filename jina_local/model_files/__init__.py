"""A file or folder -> the files of one model, checked, without network, engine or hub cache."""
