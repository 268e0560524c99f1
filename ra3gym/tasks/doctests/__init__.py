"""Tasks from the doctests of installed packages: `tasks` makes them, `package_source` copies what a function needs."""
