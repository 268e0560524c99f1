"""Reports: results, statistics, tables, charts and pages."""
