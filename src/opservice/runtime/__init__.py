"""What a process of the server needs around its work."""
