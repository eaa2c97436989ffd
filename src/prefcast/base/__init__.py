"""What knows nothing of pairs: files written whole, frames of bytes, child processes."""
