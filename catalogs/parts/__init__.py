"""What several catalogs are made of."""
