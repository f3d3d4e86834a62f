"""What the processes of the server need around their work: settings, TLS, logs, reloads, workers."""
