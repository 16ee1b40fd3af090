"""pyarrow ended the whole process when it was asked what a Parquet file with one damaged byte in its footer claims to hold.

`data/index-that-ends-pyarrow.parquet` is a store's index table with one byte changed, which makes a column of texts one of
truth values. The file is why featstore/store/footer.py reads footers before pyarrow may.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.store import layout
from featstore.store.layout import StoreError
from featstore.store.tables import read_table

PATH = Path(__file__).parents[1] / "data" / "index-that-ends-pyarrow.parquet"


def test_a_damaged_footer_is_one_line() -> None:
    with pytest.raises(StoreError, match="index-that-ends-pyarrow.parquet: not readable"):
        read_table(PATH, layout.INDEX_SCHEMA)


def test_pyarrow_still_ends_at_it() -> None:
    """Once this fails, pyarrow's own metadata will do, and footer.py can go."""
    script = f"import pyarrow.parquet as pq; pq.ParquetFile({str(PATH)!r}).metadata.row_group(0).column(0)"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.returncode == -signal.SIGABRT and "ParquetException" in found.stderr
