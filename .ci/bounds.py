"""Print pip constraints for `make newest` and `make oldest`: python .ci/bounds.py newest|oldest

Both pin torch to the version of constraints.txt; `oldest` also pins every dependency of pyproject.toml,
and those of the extra `app`, to its lower bound.
"""

import re
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
requirements = project["dependencies"] + project["optional-dependencies"]["app"]
pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if "torch==" in line]
if sys.argv[1] == "oldest":
    bounds = dict(
        re.match(r"([\w-]+)>=([\w.]+)", requirement).groups() for requirement in requirements
    )
    pins += [f"{name}=={version}" for name, version in bounds.items() if name != "torch"]
print("\n".join(pins))
