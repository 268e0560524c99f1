"""Taking rights away from processes: namespaces, seccomp and Landlock on Linux, an audit hook elsewhere."""
