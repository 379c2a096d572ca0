"""The networks, one method a file; they know tensors only, nothing of Ray, catalogs or tables."""
