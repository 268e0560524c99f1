"""What runs in the judge's processes, away from the trainer, which imports `encoding` alone.

`zygote` or `spawner` starts a process for each run. `server` reads batches of runs and answers how each one ended.
`program` runs the program under test; `tests` runs tests that call it over the connection of `calls`; `child` holds
what both processes share. `isolation` takes rights away from processes.

`start.py` loads this folder as a package named `sandbox`, in an interpreter without site-packages and without `ra3gym`.
So its modules use the standard library only, and relative imports.
"""
