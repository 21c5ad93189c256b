"""`python -m mpa_edge` is `mpa-edge`."""

from mpa_edge.cli.main import run

if __name__ == "__main__":
    run()
