"""The format: parts of raw rows in Zarr, tables in Parquet; what reads and what writes them."""
