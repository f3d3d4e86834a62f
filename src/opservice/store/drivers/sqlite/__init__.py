"""SQLite: one file, in the server's own process."""
