"""Search over folders: an index in one file, its words and vectors, questions and answers."""
