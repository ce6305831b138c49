"""Pictures that data files name by http(s) addresses: fetched once where that is allowed, and kept."""
