"""Small tools for every room above: addresses, threads, private files, harmless text."""
