"""Small real servers that stand in for those of others."""
