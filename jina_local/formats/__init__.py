"""File formats, each on one page: what is read, what is written, what is refused."""
