"""``python -m tta.data`` is ``tta-data``."""

from tta.data.cli import main

if __name__ == "__main__":
    main()
