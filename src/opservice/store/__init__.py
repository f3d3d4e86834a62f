"""Operations, kept in SQLite or PostgreSQL. Nothing here knows protobuf; no driver exception leaves."""
