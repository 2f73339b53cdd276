"""Data: sources and their formats on disk, procedural objects, object tars, shards, catalog, loader."""
