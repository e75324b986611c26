"""A query and documents -> scores in order: request, what is fed, passes, answer."""
