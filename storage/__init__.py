"""Files that appear whole, and tables that are spread over buckets of objects."""
