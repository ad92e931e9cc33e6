"""One request at a replica: connect, send, pass the answer on, end."""
