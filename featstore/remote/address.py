"""What is an address: see `featstore.store.address`."""

from featstore.store.address import as_url

__all__ = ["as_url"]
