"""Small tools that every other package may use: addresses, threads, private files, harmless text."""
