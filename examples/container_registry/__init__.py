"""A small Container Registry API whose operations live in opservice."""
