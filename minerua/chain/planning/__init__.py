"""How a plan is made: passes over the graph, measured costs, whole plans timed against one another."""
