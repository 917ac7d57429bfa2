"""One program per --mode; each reads top to bottom as its story."""
