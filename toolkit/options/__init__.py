"""Arguments of every recipe: dataclasses, YAML files and the command line, read strictly."""
