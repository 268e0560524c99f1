"""What runs on the sandbox's side of the wall, in processes of its own; the trainer imports `encoding` alone.

Every file here is loaded by its path, in an interpreter without site-packages: standard library only.
"""
