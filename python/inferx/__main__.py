"""`python -m inferx`: the same program as the installed `inferx`.

Must never hold anything but this call.
"""

from inferx.cli import main

if __name__ == "__main__":
    main()
