"""Recorded exchanges with real providers: read them, decode them, compare."""
