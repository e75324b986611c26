"""Running passes: which texts share one, how many run side by side, what is open."""
