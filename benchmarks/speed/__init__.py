"""How fast each path and each switch is, against the released generator's cost structure."""
