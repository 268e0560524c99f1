"""Tasks made of the doctests of installed packages."""
