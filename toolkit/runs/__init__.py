"""Run directories: manifest, lock, lineage, resuming, replacing, listing, and pipelines of runs."""
