"""Other frameworks, one file each, through the public names of this package."""
