"""What was answered, how good it was and how sure we are: records, statistics, results.json, tables and judges."""
