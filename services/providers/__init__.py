"""Providers: the registry of who sells what, and the worker that calls them."""
