"""What judges a program inside the sandbox: copied there as files, imported there from the working folder."""
