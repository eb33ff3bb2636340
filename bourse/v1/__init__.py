"""Generated from proto/bourse/v1 by `make proto`; never edited."""
