"""How long `mlimg --help` and `mlimg check` take, against importing the libraries any such tool imports."""

from measure import MLIMG, PYTHON, ratio_row, ratios, table
from project import project

IMPORTS = [PYTHON, "-c", "import typer, pydantic, yaml"]

if __name__ == "__main__":
    with project(model_bytes=1024) as folder:
        rows = [
            ratio_row(f"mlimg {command}", ratios([MLIMG, command], IMPORTS, rounds=15, cwd=folder), 2.0)
            for command in ("--help", "check")
        ]
    table(rows)
