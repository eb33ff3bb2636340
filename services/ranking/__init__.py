"""Public boards, counted from measured use."""
