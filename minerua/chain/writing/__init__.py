"""How a chain is written: in Python or YAML, with typed ports, and checked as a whole."""
