"""``python -m tta.search`` is the same as ``tta-search``."""

from tta.search.cli import main

if __name__ == "__main__":
    main()
