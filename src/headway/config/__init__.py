"""Configuration: TOML files and typed tables, read, checked and written; the standard library only."""
