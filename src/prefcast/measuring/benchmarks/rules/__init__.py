"""The rules of each benchmark, a file each."""
