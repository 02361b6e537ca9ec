"""What runs in the sandbox when SQL is executed: copied there as files, imported there from the working folder."""
