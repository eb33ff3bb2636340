"""Billing: the double-entry ledger, credit on loan to edges, the record of every generation."""
