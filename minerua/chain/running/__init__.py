"""How a plan is carried out: the executor, its threads, its batches and its processes."""
