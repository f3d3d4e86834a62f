"""Work that the server does on its own: sweeps and checkpoints."""
