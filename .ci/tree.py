"""Print the tree of the package into CONTRIBUTING.md, from the first lines of its modules.

`python .ci/tree.py` writes it; with `--check` it only tells, with exit status 1, that it is old.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "CONTRIBUTING.md"
BLOCK = re.compile(r"(<!-- tree: .*? -->\n```text\n).*?(```\n)", re.DOTALL)


def first_line(path: Path) -> str:
    """First line of a module's docstring, without the full stop."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0].rstrip(".")


def tree(folder: Path, indent: str = "") -> list[str]:
    """Lines for a package: its modules, then the packages inside it."""
    modules = [path for path in sorted(folder.glob("*.py")) if not path.stem.startswith("__")]
    packages = sorted(path.parent for path in folder.glob("*/__init__.py"))
    lines = [f"{indent}{path.name:<{24 - len(indent)}} {first_line(path)}" for path in modules]
    for package in packages:
        title = first_line(package / "__init__.py")
        lines += [f"{indent}{package.name + '/':<{24 - len(indent)}} {title}"]
        lines += tree(package, indent + "  ")
    return lines


def main() -> int:
    """Write the tree, or check it."""
    page = PAGE.read_text(encoding="utf-8")
    text = "\n".join(["src/omnirouter/", *tree(ROOT / "src" / "omnirouter", "  ")]) + "\n"
    new, count = BLOCK.subn(lambda match: match[1] + text + match[2], page)
    if count != 1:
        print("CONTRIBUTING.md: the block for the tree is missing", file=sys.stderr)
        return 1
    if new == page:
        return 0
    if "--check" in sys.argv:
        print("CONTRIBUTING.md: its tree is old; run python .ci/tree.py", file=sys.stderr)
        return 1
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
