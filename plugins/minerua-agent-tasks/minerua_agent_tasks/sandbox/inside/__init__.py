"""What runs in the sandbox's own processes, started with `python -I -S`: the standard library and nothing else."""
