"""PostgreSQL: for many replicas of the server."""
