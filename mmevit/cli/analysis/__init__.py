"""The commands of the paper's analyses."""
