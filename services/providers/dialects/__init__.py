"""How providers write calls and answers: one module per dialect, found by its file name."""
