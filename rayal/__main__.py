"""``python -m rayal``: the same as the ``rayal`` command, also from a bare working folder."""

from rayal.cli.app import main

if __name__ == "__main__":
    main()
