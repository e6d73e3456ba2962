"""``python -m tta`` is the command ``tta``."""

from tta.cli import main

if __name__ == "__main__":
    main()
