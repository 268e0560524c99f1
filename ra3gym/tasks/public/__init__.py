"""The public benchmarks: where their records come from, and how a record becomes a task."""
