"""Modules that know nothing of pairs: files written whole, frames of bytes, child processes."""
