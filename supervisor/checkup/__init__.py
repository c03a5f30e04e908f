"""What `chorus doctor` looks at: each check is a fact, whether it is well, and what to do where it is not."""
