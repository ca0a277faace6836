"""`python -m counterplay`, and so `accelerate launch -m counterplay`."""

from counterplay.cli import main

if __name__ == "__main__":
    main()
