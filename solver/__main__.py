"""`python -m skyfx.solver`: the planner's commands alone, without torch."""

from skyfx.solver.cli.app import app

if __name__ == "__main__":
    app(prog_name="skyfx")
