"""Run directories: manifest, lock, lineage, resuming, replacing, listing, signals."""
