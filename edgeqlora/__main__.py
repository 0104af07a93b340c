"""`python -m edgeqlora`, also the form that torchrun starts: `torchrun --nproc-per-node 2 -m edgeqlora train ...`."""

from edgeqlora.cli.main import main

if __name__ == "__main__":
    main()
