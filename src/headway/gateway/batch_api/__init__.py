"""Batch API of the gateway itself: files of requests that are answered in files, as OpenAI's `/v1/batches`."""
