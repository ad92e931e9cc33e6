"""HTTP/1.1 on both sides: what a client may send, what a replica answers, and the bytes in between."""
