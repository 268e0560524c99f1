"""From stored results to statistics, comparisons, tables and pages; nothing here runs an experiment."""
