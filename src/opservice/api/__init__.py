"""The services on the wire: requests become commands, outcomes become responses, errors statuses."""
