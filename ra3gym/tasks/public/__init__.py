"""The public benchmarks: where their records come from, and how they become tasks."""
