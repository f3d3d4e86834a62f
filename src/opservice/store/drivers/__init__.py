"""What differs between SQLite and PostgreSQL when a database is opened."""
