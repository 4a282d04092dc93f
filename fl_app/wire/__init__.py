"""What may travel between server and client, and how foreign bytes are checked."""
