"""The node as a service of systemd: `unit` has the files' text, `plan` says what is to be done, `install` does it."""
