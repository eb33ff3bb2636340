"""Side-by-side measurements anyone can rerun: `make bench`."""
