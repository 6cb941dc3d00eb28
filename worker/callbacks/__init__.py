"""HTTP out: what was found and judged goes to who asked for it."""
