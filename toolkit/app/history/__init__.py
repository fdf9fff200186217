"""The runs on disk: states, lineage, curves, settings, reports."""
