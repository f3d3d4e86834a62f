"""What each RPC does."""
