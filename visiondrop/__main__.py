"""`python -m visiondrop`, and the command `visiondrop`: see `visiondrop.cli`."""

import sys

from . import doctor


def main(arguments: list[str] | None = None) -> int:
    """Run a command.  The doctor's is recognised here, before anything that might be broken is imported."""
    given = sys.argv[1:] if arguments is None else arguments
    if given == ["doctor"]:
        return doctor.main()
    try:
        from . import cli  # needs torch and transformers
    except ImportError as error:
        print(f"error: {error}; what is wrong here: python -m visiondrop doctor", file=sys.stderr)
        return 2
    return cli.main(given)


if __name__ == "__main__":
    sys.exit(main())
