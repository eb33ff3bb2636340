"""The `bourse` command: an exchange from the terminal, through its public HTTP API alone."""
