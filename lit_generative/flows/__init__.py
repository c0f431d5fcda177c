"""Parts of normalising flows."""
