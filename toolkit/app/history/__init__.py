"""The runs on disk: state, lineage, curves, settings and reports."""
