"""The sub-commands of `ra3gym`, one module each."""
