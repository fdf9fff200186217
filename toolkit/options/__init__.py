"""Arguments of all recipes: dataclasses, and strict reading of YAML and the command line."""
