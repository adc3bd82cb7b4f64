"""One file for each step; it is frozen once it is released."""
