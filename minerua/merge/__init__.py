"""Merging: methods that turn several task vectors into one, and the seeds that evolution starts from."""
