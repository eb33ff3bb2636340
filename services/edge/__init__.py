"""The only public HTTP: identity, the request path, and pages that ask other services."""
