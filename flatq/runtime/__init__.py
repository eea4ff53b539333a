"""Running models: one file for each backend, one protocol. Nothing here makes files or samples images."""
