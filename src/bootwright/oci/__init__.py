"""OCI: references, manifests, registries, layouts, layer archives. Knows nothing of EROFS."""
