"""Tasks of your own, for a worker in a container."""
