"""The tests: one folder per room, and acceptance, chaos and architecture beside them."""
