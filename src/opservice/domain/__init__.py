"""What operations, commands, filters and identities are. Standard library only."""
