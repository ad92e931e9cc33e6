"""Length predictors: how many output tokens will a request produce? One file per policy."""
