"""One file per command: its page of help, its checks, its call."""
