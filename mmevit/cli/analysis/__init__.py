"""Commands that analyse networks as the paper does."""
