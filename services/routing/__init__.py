"""Which endpoints may serve a request, in which order, at which price, and why not others."""
