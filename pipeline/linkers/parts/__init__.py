"""What several linkers are made of."""
